#!/usr/bin/env python3
"""Nothing a guest writes, no volume name and no key stands readable in any file of clouds or node, or in their names."""

import os
import pathlib
import random
import time

from drill import MIB, Drill, Nbd, Node, check, run, say

SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
WINDOW = 16


def canary(chance):
    """16 distinct bytes; a block is full of them, so every window of 16 bytes is a turn of these."""
    return bytes(chance.sample(range(33, 127), WINDOW))


def windows(secret):
    return {secret[at:at + WINDOW] for at in range(len(secret) - WINDOW + 1)}


def scan(folders, needles):
    """Where a needle stands, in contents or names; and how much was looked at."""
    found, files, size = [], 0, 0
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*")):
            name = str(path.relative_to(folder)).encode()
            found += [f"name {path}" for needle in needles if needle in name]
            if not path.is_file() or path.is_socket():
                continue
            body = path.read_bytes()
            files, size = files + 1, size + len(body)
            found += [f"{path}: {needle!r}" for needle in needles if needle in body]
    return found, files, size


with Drill("canaries: nothing readable outside the node's memory", 300) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    canaries = [canary(chance) for _ in range(3)]
    volume = "".join(chance.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(20))
    data = drill.folder / "data"
    node = Node(drill, data, "--volume", volume, "--size", "256MiB").start()
    nbd = Nbd(node.socket, volume)
    for at in range(64):
        nbd.write(at * MIB, chance.choice(canaries) * (MIB // WINDOW // 2))
    nbd.flush()
    node.flush(volume)
    for at in range(2000):
        nbd.write(chance.randrange(60_000) * 4096, chance.choice(canaries) * (4096 // WINDOW))
    node.flush(volume)
    # A write that stays in the journal, and a cache filled from the clouds.
    nbd.close()
    node.stop()
    node.start()
    nbd = Nbd(node.socket, volume)
    for at in range(64):
        nbd.read(at * MIB, MIB)
    for at in range(100):
        nbd.write(chance.randrange(60_000) * 4096, chance.choice(canaries) * (4096 // WINDOW))
    nbd.flush()
    node.kill()
    key = (data / "root.key").read_bytes().strip()
    needles = set()
    for pattern in canaries:
        needles |= windows(pattern * 2)
    needles |= windows(volume.encode()) | windows(key) | windows(bytes.fromhex(key.decode()))
    began = time.monotonic()
    found, files, size = scan([data / "clouds", data / "node-1"], needles)
    check(not found, "readable: " + "; ".join(found[:5]))
    say(f"   {len(needles)} windows of 16 bytes (canary data, a volume name of 20 characters, the root key raw and in "
        f"hexadecimal) looked for in {files} files, {size >> 20} MiB, and in their names: none found")
    planted = data / "node-1" / "planted"
    planted.write_bytes(os.urandom(5000) + canaries[1][3:] + canaries[1][:3] + os.urandom(5000))
    check(scan([data / "node-1"], needles)[0], "the scan does not find a canary planted on purpose")
    say("   a canary planted on purpose is found")
