#!/usr/bin/env python3
"""Three nodes beside one: the same fio work, turn by turn in one run, as a table of medians and ratios.

usage: cluster.py [--pairs 7] [--seconds 5] [--work NAME,...]      VELUM names another binary

The three are processes of their own with TLS between them over the loopback, each with a journal of its own on the one disk:
what a guest writes is acked when two of them have it, and all three of them, the guest and the clouds share the machine. The
one is `velum up`. Both have the same memory and three local directories for clouds, and serve on unix sockets. Rounds, ratios and
ranges are those of side_by_side.py. Works through another door go in at a node that does not own the volume. A second table has what a
guest reads who is attached alone, by lease, beside what one reads who shares the volume: the owner asks a member about each. Needs
fio with the nbd engine.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "drills"))
from cluster import Cluster  # noqa: E402
from drill import Drill, say, wait_until_complete  # noqa: E402
from side_by_side import SIZE, Velum, fio, measure, parse, show  # noqa: E402

# What `velum up` takes by itself.
MEMORY = "512MiB"
OTHER_DOOR = ", through another door"

# As in side_by_side.py.
WORKS = {
    "write 4 KiB random QD32": ("--rw=randwrite --bs=4k --iodepth=32", "iops", True),
    f"write 4 KiB random QD32{OTHER_DOOR}": ("--rw=randwrite --bs=4k --iodepth=32", "iops", True),
    "write 4 KiB random QD1": ("--rw=randwrite --bs=4k --iodepth=1", "iops", True),
    "write 4 KiB + barrier QD1": ("--rw=randwrite --bs=4k --iodepth=1 --fsync=1", "barrier", False),
    "read 4 KiB random QD32": ("--rw=randread --bs=4k --iodepth=32", "iops", True),
    f"read 4 KiB random QD32{OTHER_DOOR}": ("--rw=randread --bs=4k --iodepth=32", "iops", True),
    "write 1 MiB sequential QD4, 192 MiB": ("--rw=write --bs=1m --iodepth=4 --io_size=192m", "mbps", True),
}

# By lease beside by question.
LEASED = {
    "attached: read 4 KiB random QD1": ("--rw=randread --bs=4k --iodepth=1", "iops", True),
    "attached: read 4 KiB random QD32": ("--rw=randread --bs=4k --iodepth=32", "iops", True),
}


class Three:
    """Three nodes and a volume, reached at its owner's door or at another one."""

    def __init__(self, cluster, by_owner=True):
        self.cluster, self.by_owner = cluster, by_owner

    @property
    def pids(self):
        return [host.process.pid for host in self.cluster.hosts.values()]

    def owner(self):
        return self.cluster.hosts[self.cluster.owner()]

    @property
    def uri(self):
        """Asked for anew each time: on a busy machine another node may have taken the volume over."""
        owner = self.owner()
        doors = [host for host in self.cluster.hosts.values() if (host is owner) == self.by_owner]
        return f"nbd+unix:///demo?socket={doors[0].socket}"

    def rest(self):
        """Nothing of the work before is left to be done."""
        owner = self.owner()
        owner.velum("volume", "flush", "demo", timeout=300)
        wait_until_complete(owner.velum)


class Attached(Three):
    """A guest who takes the volume for himself, or to share it."""

    def __init__(self, cluster, *options):
        super().__init__(cluster)
        self.options = options

    @property
    def uri(self):
        owner = self.owner()
        made = owner.velum("volume", "attach", "demo", "--steal", *self.options)
        return f"nbd+unix:///{made['export']}?socket={owner.socket}"


def table(names, columns, servers, arguments):
    """Works of one kind, if any are asked for; `servers` gives the two that do one."""
    if names:
        say(f"| work | {columns[0]} | {columns[1]} | ratio | range |\n|---|---|---|---|---|")
    for name, work in (WORKS | LEASED).items():
        if name in names:
            show(name, work, measure(dict(zip(columns, servers(name))), work, arguments))


def main():
    arguments, works = parse(__doc__, WORKS | LEASED)
    with Drill("three nodes beside one", 3600) as drill:
        one, cluster = Velum(drill, "--memory", MEMORY), Cluster(drill, SIZE, memory=MEMORY)
        three = Three(cluster)
        for server in (three, one):
            fio(server.uri, "--rw=write --bs=1m --iodepth=4", None)
        table(works.keys() & WORKS.keys(), ("three nodes", "one node"), lambda name: (
            Three(cluster, by_owner=False) if name.endswith(OTHER_DOOR) else three, one), arguments)
        table(works.keys() & LEASED.keys(), ("by lease", "by question"), lambda name: (
            Attached(cluster), Attached(cluster, "--shared")), arguments)
        say(f"   load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
