#!/usr/bin/env python3
"""A node's journal loses writes that a barrier covered, while another node that kept them is away: the volume waits for that node, and
serves all of it when it is back; then the damaged copy is filled, and the other two serve from it alone.

SEED sets what is drawn.
"""

import os
import random
import time

from cluster import Cluster, Host
from drill import BLOCK, MIB, Drill, Failed, Nbd, check, say

SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE = 32 * MIB
BLOCKS = 200
HEADER, VOLUME = 96, 2  # Bytes of a record's header in a journal file, and the kind of a volume's.


class Slow(Host):
    """A host that flushes nothing meanwhile: what the clouds have no journal needs."""

    settings = ('[journal]\nfile_bytes = "16MiB"\nfiles_initial = 2\nbytes_max = "256MiB"\n\n'
                '[flush]\nbytes = "48MiB"\ninterval = "10m"\n\n')


def records(folder):
    """Where volumes' records stand in the files of a journal: file, offset, bytes of the body, by position."""
    found = {}
    for path in sorted(folder.glob("*.journal")):
        data, at = path.read_bytes(), 0
        while (at := data.find(b"VLjn", at)) >= 0:
            if data[at + 4] == VOLUME and at % 8 == 0:
                epoch, number = (int.from_bytes(data[at + place:][:8], "little") for place in (48, 56))
                found[epoch, number] = path, at, int.from_bytes(data[at + 80:][:4], "little")
            at += 4
    return [found[place] for place in sorted(found)]


def spoil(record, chance):
    """Flips a bit of a record's body."""
    path, at, length = record
    with open(path, "r+b") as file:
        file.seek(at + HEADER + chance.randrange(length))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def fill(host, chance):
    """Writes every block, behind barriers; what they hold."""
    nbd, contents = Nbd(host.socket, seconds=30), {}
    for block in range(BLOCKS):
        contents[block] = chance.randbytes(BLOCK)
        nbd.write(block * BLOCK, contents[block])
        if block % 20 == 19:
            nbd.flush()
    nbd.close()
    return contents


def image(host, contents):
    """Whether a node serves the volume within a moment; fails when it serves anything but what was written."""
    try:
        nbd = Nbd(host.socket, seconds=3)
        held = all(nbd.read(block * BLOCK, BLOCK) == block_contents for block, block_contents in contents.items())
        nbd.close()
    except (OSError, Failed):
        return False
    check(held, "what barriers covered is gone")
    return True


def lose(cluster, chance, what):
    """One round: the records that `what` chooses are damaged on a node, while the owner is away and a third node never had them."""
    lineage = cluster.volume()["lineage"]
    owner = cluster.hosts[cluster.owner()]
    damaged, late = chance.sample([host for host in cluster.hosts.values() if host is not owner], 2)
    late.kill()
    contents = fill(owner, chance)
    owner.kill()
    damaged.kill()
    kept = records(damaged.folder / "node" / "journal")
    check(len(kept) >= BLOCKS, f"only {len(kept)} records stand in the journal")
    lost = what(kept[-BLOCKS:])
    for record in lost:
        spoil(record, chance)
    for host in (damaged, late):
        host.start()
    until = time.monotonic() + 15
    while time.monotonic() < until:
        check(not any(image(host, contents) for host in (damaged, late)), "the volume is served by a copy that is damaged")
        time.sleep(0.5)
    advice = [line for host in cluster.live() for line in host.velum("cluster", "status", timeout=10)["advice"]]
    check(any(f"the journal of node {damaged.number} is damaged" in line and f"start node {owner.number}" in line for line in advice),
          f"nobody says why it waits: {advice}")
    began = time.monotonic()
    owner.start()
    cluster.wait(lambda: all(image(host, contents) for host in cluster.live()), "the volume to be served", 60)
    served = time.monotonic() - began
    cluster.await_copies(3)
    filled = time.monotonic() - began
    gone = cluster.hosts[cluster.owner()] if cluster.owner() != damaged.number else late
    gone.kill()
    cluster.wait(lambda: all(image(host, contents) for host in cluster.live()), "the volume to be served by the other two", 60)
    gone.start()
    cluster.await_copies(3)
    check(cluster.volume()["lineage"] == lineage, "the lineage has changed, and nothing that was acked is gone")
    say(f"   {len(lost)} of {len(kept)} synced records were damaged on node {damaged.number}: the volume waited for node {owner.number}, "
        f"was served with all of it {served:.1f} s after its start, and kept by three again after {filled:.1f} s")


with Drill("a journal is damaged while another node is away", 240) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE, host=Slow)
    # No record is left that tells of the last barrier; and some are missing between others.
    lose(cluster, chance, lambda kept: kept[-25:])
    lose(cluster, chance, lambda kept: chance.sample(kept[:-25], 3))
