#!/usr/bin/env python3
"""A real file system image goes in, is flushed, comes back byte-identical, and is used read-write through a loop device."""

import os
import pathlib
import shutil
import time

from drill import Drill, Node, check, file_hash, run, say

# Real trees of the machine, taken whole and in this order until there is enough: documents, then whatever else it has much of.
TREES = ("/usr/share/doc", "/usr/share/man", "/usr/include", "/usr/lib/python3", "/usr/share/locale", "/usr/share/perl",
         "/usr/share/javascript", "/usr/share/icons", "/usr/share/vim", "/usr/lib/gcc")
FILES_MIB_MIN, FILES_MIB_MAX = 300, 700


def mebibytes(folder):
    return int(run("du", "-sm", folder).split()[0])


def gather(folder):
    """Copies trees of the machine into a folder; gives what was taken and how much that is."""
    taken, total = [], 0
    for tree in filter(pathlib.Path.is_dir, map(pathlib.Path, TREES)):
        if total >= FILES_MIB_MIN:
            break
        size = mebibytes(tree)
        if total + size <= FILES_MIB_MAX:
            run("cp", "--archive", "--parents", tree.relative_to("/"), folder, cwd="/")
            taken.append(f"{tree} {size}")
            total += size
    check(total >= FILES_MIB_MIN, f"this machine has only {total} MiB in {', '.join(TREES)}: too little to fill an image with")
    return ", ".join(taken), mebibytes(folder)


def make_image(path, folder):
    """An ext4 image filled with the machine's own files."""
    folder.mkdir()
    taken, used = gather(folder)
    size = 1 << 30
    with open(path, "wb") as image:
        image.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", 131072, "-d", folder, path)
    shutil.rmtree(folder)
    return taken, used, size


def through_loop(drill, node):
    """Mounts the volume, changes files, and gives what fsck says afterwards."""
    point, mount = drill.folder / "fuse", drill.folder / "mnt"
    point.mkdir(), mount.mkdir()
    disk = point / "disk"
    disk.touch()
    fuse = drill.spawn("nbdfuse", disk, node.uri(), log=drill.folder / "nbdfuse.log")
    deadline = time.monotonic() + 20
    while disk.stat().st_size == 0:
        check(fuse.poll() is None and time.monotonic() < deadline, "nbdfuse does not serve the volume")
        time.sleep(0.1)
    loop = run("losetup", "-f", "--show", "--direct-io=on", disk).strip()
    drill.mounts.append(lambda: run("umount", disk))
    drill.mounts.append(lambda: run("losetup", "-d", loop))
    run("mount", loop, mount)
    drill.mounts.append(lambda: run("umount", mount))
    names = sorted(path for path in mount.rglob("*") if path.is_file() and not path.is_symlink())
    for number, path in enumerate(names[:400]):
        if number % 4 == 0:
            path.unlink()
        else:
            path.write_bytes(os.urandom(9000 + number))
    (mount / "made-here").mkdir()
    for number in range(100):
        (mount / "made-here" / f"file-{number}").write_bytes(bytes([number]) * 30_000)
    run("sync", "-f", mount)
    run("umount", mount)
    drill.mounts.pop()
    checked = run("e2fsck", "-fn", loop)
    run("mount", loop, mount)
    drill.mounts.append(lambda: run("umount", mount))
    for number in range(100):
        kept = (mount / "made-here" / f"file-{number}").read_bytes()
        check(kept == bytes([number]) * 30_000, f"made-here/file-{number} came back changed")
    while drill.mounts:
        drill.mounts.pop()()
    fuse.wait(30)
    return len(names), checked.strip().splitlines()[-1]


with Drill("an ext4 image: copied in, flushed, read back, mounted read-write", 600) as drill:
    image, back = drill.folder / "image", drill.folder / "back"
    taken, used, size = make_image(image, drill.folder / "files")
    say(f"   image of {used} MiB of files in {size >> 20} MiB (MiB of each tree: {taken}), sha256 {file_hash(image)[:16]}...")
    node = Node(drill, drill.folder / "data", "--size", f"{size}B").start()
    began = time.monotonic()
    run("nbdcopy", "--destination-is-zero", image, node.uri(), timeout=300)
    copied = time.monotonic() - began
    flushed = node.flush()
    exposure = node.velum("volume", "show", "demo")["exposure"]
    check(exposure["dirty_bytes"] == 0 and exposure["durable_seq"] == exposure["head_seq"], f"after a flush: {exposure}")
    say(f"   nbdcopy in {copied:.1f} s ({used / copied:.0f} MiB/s of files), `volume flush` {flushed:.1f} s more, nothing exposed")
    run("nbdcopy", node.uri(), back, timeout=300)
    check(file_hash(back) == file_hash(image), "what comes back is not what went in")
    say("   read back with nbdcopy: byte-identical")
    say(f"   qemu-img compare: {run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', image, node.uri()).strip()}")
    node.stop()
    node.start()
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, node.uri())
    say(f"   after a clean stop and a start ({node.start_seconds:.2f} s): identical")
    files, verdict = through_loop(drill, node)
    say(f"   mounted read-write through nbdfuse and a loop device: {files} files seen, 500 changed, unmounted; e2fsck: {verdict}")
    node.stop()
