#!/usr/bin/env python3
"""The node and a cloud are gone, or a cloud is damaged: `velum recover` brings the image back from the clouds and the key."""

import json
import os
import random
import shutil
import subprocess
import time

from drill import MIB, VELUM, Drill, Node, check, file_hash, run, say

SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE = 512 * MIB


def make_image(path, chance):
    """Stretches of random bytes among holes, with repeats."""
    with open(path, "wb") as image:
        image.truncate(SIZE)
        for _ in range(60):
            image.seek(chance.randrange(SIZE // 4096 - 1024) * 4096)
            image.write(chance.randbytes(chance.randrange(1, 1024) * 4096))


def overwrite(node, image, chance):
    """Many small writes, some over earlier ones, to volume and image alike, so that the map is no simple copy."""
    from drill import Nbd
    nbd = Nbd(node.socket)
    with open(image, "r+b") as file:
        for _ in range(3000):
            offset, payload = chance.randrange(SIZE // 512 - 128) * 512, chance.randbytes(chance.randrange(1, 64) * 512)
            nbd.write(offset, payload)
            file.seek(offset)
            file.write(payload)
    nbd.close()


def recover(drill, data, name, clouds, *arguments, okay=(0,)):
    """Recovers from copies of clouds, serves the result, and gives the report and the image read back."""
    new = drill.folder / name
    given = [word for cloud, folder in clouds.items() for word in ("--cloud", f"{cloud}=file://{folder}")]
    began = time.monotonic()
    report = json.loads(run(VELUM, "--output", "json", "recover", *given, "--keyfile", data / "root.key", "--dir", new,
                            *arguments, timeout=300, okay=okay))
    node = Node(drill, new)
    node.settle()
    node.start()
    run("nbdinfo", node.uri())
    readable = time.monotonic() - began
    back = drill.folder / f"{name}.back"
    run("nbdcopy", node.uri(), back, timeout=300)
    node.stop()
    return report, back, readable


def damage(folder, chance):
    """Flips, cuts and removes: most objects are hurt somewhere."""
    hurt = {"bytes flipped": 0, "cut": 0, "removed": 0}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        # A cloud whose slots are gone and whose identity names another cluster is taken for that cluster's: not here.
        what = chance.uniform(0.2, 1) if "slots" in path.parts else chance.random()
        if what < 0.1:
            path.unlink()
            hurt["removed"] += 1
        elif what < 0.2:
            os.truncate(path, chance.randrange(path.stat().st_size + 1))
            hurt["cut"] += 1
        elif what < 0.8:
            body = bytearray(path.read_bytes())
            for _ in range(chance.randrange(1, 4)):
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
            path.write_bytes(body)
            hurt["bytes flipped"] += 1
    return hurt


def summary(report):
    return {cloud["name"]: (sum(cloud["corrupt"].values()), sum(cloud["missing"].values())) for cloud in report["clouds"]}


with Drill("node and cloud lost, cloud damaged: recovered from clouds and key", 600) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    data, image = drill.folder / "data", drill.folder / "image"
    make_image(image, chance)
    node = Node(drill, data, "--size", f"{SIZE}B").start()
    run("nbdcopy", "--destination-is-zero", image, node.uri())
    node.flush()
    overwrite(node, image, chance)
    node.flush()
    node.wait_until_complete()
    node.kill()
    expected = file_hash(image)
    shutil.rmtree(data / "node-1")
    originals = {name: data / "clouds" / name for name in "abc"}

    def copies(tag):
        """The clouds as they stood: a recovery writes to them."""
        folders = {name: drill.folder / tag / name for name in originals}
        for name, folder in folders.items():
            shutil.copytree(originals[name], folder)
        return folders

    for lost in "abc":
        folders = copies(f"without-{lost}")
        shutil.rmtree(folders.pop(lost))
        report, back, readable = recover(drill, data, f"new-{lost}", folders, "--accept-missing", lost)
        check(file_hash(back) == expected, f"without cloud {lost} the image is another one")
        say(f"   node and cloud {lost} gone: byte-identical to the last flush, first readable {readable:.1f} s after the "
            f"command; {report['assumption']}")
        shutil.rmtree(drill.folder / f"new-{lost}")
        back.unlink()

    folders = copies("damaged")
    hurt = damage(folders["b"], chance)
    report, back, _ = recover(drill, data, "new-damaged", folders, "--verify", "full")
    check(file_hash(back) == expected, "with cloud b damaged the image is another one")
    found = summary(report)
    check(sum(found["b"]) > 0, f"the damage of cloud b is not in the report: {found}")
    check(sum(found["a"]) == 0 and sum(found["c"]) == 0, f"clouds a and c are whole, the report says otherwise: {found}")
    say(f"   cloud b damaged ({hurt}): byte-identical; reported of b: {found['b'][0]} corrupt, {found['b'][1]} missing")

    folders = copies("refused")
    shutil.rmtree(folders.pop("c"))
    given = [word for cloud, folder in folders.items() for word in ("--cloud", f"{cloud}=file://{folder}")]
    refused = subprocess.run([VELUM, "recover", *given, "--keyfile", str(data / "root.key"), "--dir",
                              str(drill.folder / "new-refused")], capture_output=True, text=True, timeout=60)
    check(refused.returncode == 1 and "--accept-missing c" in refused.stderr, f"a missing cloud is not asked about: {refused}")
    say("   a cloud left out without a word is refused, with the flag that accepts it")
