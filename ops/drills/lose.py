#!/usr/bin/env python3
"""The node and a cloud are gone, or the node is and a cloud is damaged, emptied or another cluster's: `velum recover` brings the
image back from the clouds and the key, and the new node fills the bad cloud again."""

import json
import os
import random
import shutil
import subprocess
import time

from drill import MIB, VELUM, Drill, Node, check, file_hash, run, say, tree

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


def recover(drill, data, name, clouds, *arguments, okay=(0,), served=None):
    """Recovers from copies of clouds, serves the result, and gives the report and the image read back. `served` is told of the
    node while it runs."""
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
    if served:
        served(node)
    node.stop()
    return report, back, readable


def wait_until_listed(node, name, seconds=120):
    """Waits until `velum cloud list` shows the cloud at the head of every volume."""
    node.flush()
    node.wait_until_complete(seconds=seconds)
    listed = {cloud["name"]: cloud for cloud in node.velum("cloud", "list")}
    check(listed[name]["lag_records"] == 0, f"cloud {name} lags in `velum cloud list`: {listed[name]}")
    check(listed[name]["state"] == "up", f"cloud {name} is not up in `velum cloud list`: {listed[name]}")


def damage(folder, chance):
    """Flips, cuts and removes: most objects are hurt somewhere."""
    hurt = {"bytes flipped": 0, "cut": 0, "removed": 0}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        what = chance.random()
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


def ruin(folder, chance):
    """Hurts every object: a third each by flipped bits, by a tail of random bytes, and by nothing but random bytes."""
    count = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        body = bytearray(path.read_bytes())
        match chance.randrange(3):
            case 0:
                for _ in range(chance.randrange(1, 9)):
                    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
            case 1:
                at = chance.randrange(len(body))
                body[at:] = chance.randbytes(len(body) - at)
            case _:
                body[:] = chance.randbytes(len(body))
        count += bytes(body) != path.read_bytes()
        path.write_bytes(body)
    return f"{count} objects hurt"


def empty(folder, _):
    """Leaves the place and nothing in it."""
    for entry in list(folder.iterdir()):
        shutil.rmtree(entry)
    return "emptied"


def summary(report):
    return {cloud["name"]: (sum(cloud["corrupt"].values()), sum(cloud["missing"].values())) for cloud in report["clouds"]}


with Drill("node and cloud lost, cloud bad: recovered from clouds and key", 900) as drill:
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

    # Another cluster, whose cloud stands where one of ours should.
    other = Node(drill, drill.folder / "other", "--size", "64MiB").start()
    other.flush()
    other.stop()

    def replace(folder, _):
        shutil.rmtree(folder)
        shutil.copytree(drill.folder / "other" / "clouds" / folder.name, folder)
        return "replaced by another cluster's"

    bad = {"damaged": ruin, "empty": empty, "foreign": replace}
    for bad_cloud, (standing, spoil) in zip("bca", bad.items()):
        folders = copies(f"bad-{standing}")
        folder = folders[bad_cloud]
        what = spoil(folder, chance)
        spoilt = tree(folder)

        def served(node):
            if standing == "foreign":
                check(tree(folder) == spoilt, "another cluster's cloud was written to")
                error = {cloud["name"]: cloud for cloud in node.velum("cloud", "list")}[bad_cloud]["last_error"]
                check("another cluster" in (error or ""), f"`velum cloud list` does not say why: {error}")
                # What the report says: an empty place under this URL.
                shutil.rmtree(folder)
                folder.mkdir(mode=0o700)
            wait_until_listed(node, bad_cloud)

        report, back, _ = recover(drill, data, f"new-bad-{standing}", folders, served=served)
        check(file_hash(back) == expected, f"with cloud {bad_cloud} {what} the image is another one")
        told = {cloud["name"]: cloud for cloud in report["clouds"]}[bad_cloud]
        check(told["standing"] == standing, f"cloud {bad_cloud} was {what}, the report says {told}")
        check(f"({bad_cloud})" in report["assumption"], f"the assumption does not name {bad_cloud}: {report['assumption']}")
        back.unlink()
        # The proof that it is whole again: it and one other bring everything back.
        left = {name: folder for name, folder in folders.items() if name in (bad_cloud, "b" if bad_cloud == "a" else "a")}
        gone = next(name for name in "abc" if name not in left)
        again, back, _ = recover(drill, data, f"again-{standing}", left, "--accept-missing", gone, "--verify", "full")
        check(file_hash(back) == expected, f"cloud {bad_cloud} was filled again, and the image is another one")
        whole = {cloud["name"]: cloud for cloud in again["clouds"]}[bad_cloud]
        check(not whole["corrupt"] and not whole["missing"], f"cloud {bad_cloud} is not whole again: {whole}")
        back.unlink()
        say(f"   cloud {bad_cloud} {what}: byte-identical; the report: {told['why']}; {told['follows']}; filled again, at the "
            "head, and without fault in the next recovery")

    folders = copies("two-bad")
    ruin(folders["a"], chance)
    empty(folders["c"], chance)
    before = tree(drill.folder / "two-bad")
    given = [word for cloud, folder in folders.items() for word in ("--cloud", f"{cloud}=file://{folder}")]
    refused = subprocess.run([VELUM, "recover", *given, "--keyfile", str(data / "root.key"), "--dir",
                              str(drill.folder / "new-two-bad")], capture_output=True, text=True, timeout=60)
    check(refused.returncode == 1 and "of cloud a," in refused.stderr and "of cloud c," in refused.stderr,
          f"two bad clouds are not refused by name: {refused}")
    check(tree(drill.folder / "two-bad") == before, "a refused recovery changed the clouds")
    check(not (drill.folder / "new-two-bad").exists(), "a refused recovery left a directory")
    say("   two clouds bad: refused with a reason for each, clouds and directory as before")

    folders = copies("refused")
    shutil.rmtree(folders.pop("c"))
    given = [word for cloud, folder in folders.items() for word in ("--cloud", f"{cloud}=file://{folder}")]
    refused = subprocess.run([VELUM, "recover", *given, "--keyfile", str(data / "root.key"), "--dir",
                              str(drill.folder / "new-refused")], capture_output=True, text=True, timeout=60)
    check(refused.returncode == 1 and "--accept-missing c" in refused.stderr, f"a missing cloud is not asked about: {refused}")
    say("   a cloud left out without a word is refused, with the flag that accepts it")
