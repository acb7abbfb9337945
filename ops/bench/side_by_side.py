#!/usr/bin/env python3
"""Velum beside qemu-nbd on a raw file: the same fio work, turn by turn in one run, as a table of medians and ratios.

usage: side_by_side.py [--pairs 7] [--seconds 5] [--work NAME,...]      VELUM names another binary

Both servers listen on a unix socket of the same machine and keep their data in the same scratch folder. Each round runs one
work on one server and then on the other, the order turning with every round, so that what else the machine does
meets both. Before each, both have flushed, compacted and written back all that earlier works left. A ratio is that of one round's two figures; the table shows the median of the ratios and their range.
Velum runs as `velum up` sets it up, with three local directories for clouds: its figures include sealing everything
for the journal and again for the clouds, and storing it there three times. 192 MiB are what the dirty budget takes without waiting for the clouds. Needs fio with the nbd engine, and qemu-nbd.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "drills"))
from drill import MIB, Drill, Failed, Node, check, run, say  # noqa: E402
from quiet import await_calm  # noqa: E402

SIZE = 1024 * MIB
REGION = 256 * MIB

# What is measured: fio's options, which of its figures, its unit, and whether more is better.
WORKS = {
    "write 4 KiB random QD32": ("--rw=randwrite --bs=4k --iodepth=32", "iops", True),
    "write 4 KiB random QD1": ("--rw=randwrite --bs=4k --iodepth=1", "iops", True),
    "write 4 KiB + barrier QD1": ("--rw=randwrite --bs=4k --iodepth=1 --fsync=1", "barrier", False),
    "read 4 KiB random QD32": ("--rw=randread --bs=4k --iodepth=32", "iops", True),
    "read 4 KiB random QD1": ("--rw=randread --bs=4k --iodepth=1", "iops", True),
    "write 1 MiB sequential QD4, 192 MiB": ("--rw=write --bs=1m --iodepth=4 --io_size=192m", "mbps", True),
    "write 1 MiB sequential QD4, for long": ("--rw=write --bs=1m --iodepth=4", "mbps", True),
    "read 1 MiB sequential QD4": ("--rw=read --bs=1m --iodepth=4", "mbps", True),
}
UNITS = {"iops": "/s", "mbps": " MB/s", "barrier": " us"}


def fio(uri, options, seconds):
    """One run; fio's report of it."""
    length = ["--time_based", f"--runtime={seconds}"] if seconds else []
    report = run(
        "fio", "--name=work", "--ioengine=nbd", f"--uri={uri}", f"--size={REGION}", "--thread", "--randrepeat=0",
        "--output-format=json", *options.split(), *length, timeout=600)
    return json.loads(report[report.index("{"):])["jobs"][0]


def figure(job, what):
    """The figure of a report that the table shows."""
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    if what == "iops":
        return side["iops"]
    if what == "mbps":
        return side["bw_bytes"] / 1e6
    median = lambda latency: latency["percentile"]["50.000000"] / 1000  # noqa: E731
    return median(side["clat_ns"]) + median(job["sync"]["lat_ns"])


def measure(servers, work, arguments):
    """All rounds of one work: the figures per server."""
    options, what, _ = work
    seconds = None if "io_size" in options else arguments.seconds
    figures = {name: [] for name in servers}
    for turn in range(arguments.pairs):
        order = list(servers) if turn % 2 == 0 else list(reversed(servers))
        for name in order:
            for server in servers.values():
                server.rest()
            await_calm(pid for server in servers.values() for pid in server.pids)
            figures[name].append(figure(fio(servers[name].uri, options, seconds), what))
    return figures


class Velum:
    """`velum up` with a volume."""

    def __init__(self, drill, *arguments):
        self.node = Node(drill, drill.folder / "velum", "--size", f"{SIZE}B", *arguments).start()
        self.node.reclaim_after("10s")
        self.uri = self.node.uri()

    @property
    def pids(self):
        return [self.node.process.pid]

    def rest(self):
        """Nothing of the work before is left to be done."""
        self.node.flush()
        self.node.wait_until_complete()


class QemuNbd:
    """qemu-nbd on a raw file, with the page cache as its write-back cache."""

    def __init__(self, drill, folder=None):
        folder = folder or drill.folder
        raw, socket = folder / "raw", folder / "qemu.sock"
        run("fallocate", "--length", SIZE, raw)
        self.process = drill.spawn(
            "qemu-nbd", "--persistent", "--shared=16", "--format=raw", "--cache=writeback", "--discard=unmap",
            f"--socket={socket}", "--export-name=demo", raw, log=drill.folder / "qemu.log")
        self.uri = f"nbd+unix:///demo?socket={socket}"
        self.pids = [self.process.pid]
        wait_for(socket)

    def rest(self):
        """It has nothing but what is in the page cache."""


def wait_for(path):
    """Waits until a socket is there."""
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.1)
    raise Failed(f"{path} does not come")


def show(name, work, figures):
    """One line of the table: the first server beside the second."""
    _, what, more = work
    ours, theirs = figures.values()
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    unit = UNITS[what]
    say(f"| {name}{'' if more else ', latency'} | {statistics.median(ours):,.0f}{unit} | "
        f"{statistics.median(theirs):,.0f}{unit} | {statistics.median(ratios):.2f} | "
        f"{min(ratios):.2f} to {max(ratios):.2f} |")


def parse(description, works):
    """What was asked for, and which of the works."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="rounds of each work (default 7)")
    parser.add_argument("--seconds", type=float, default=5, help="length of one run (default 5)")
    parser.add_argument("--work", default="", help="only works whose name has one of these words, separated by commas")
    arguments = parser.parse_args()
    words = [word for word in arguments.work.split(",") if word]
    chosen = {name: work for name, work in works.items() if not words or any(word in name for word in words)}
    check(chosen, f"no work has {words} in its name; there are: {', '.join(works)}")
    return arguments, chosen


def main():
    arguments, works = parse(__doc__, WORKS)
    with Drill("velum beside qemu-nbd on a raw file", 3600) as drill:
        servers = {"velum": Velum(drill), "qemu-nbd": QemuNbd(drill)}
        for server in servers.values():
            fio(server.uri, "--rw=write --bs=1m --iodepth=4", None)
        say("| work | velum | qemu-nbd | ratio | range |\n|---|---|---|---|---|")
        for name, work in works.items():
            show(name, work, measure(servers, work, arguments))


if __name__ == "__main__":
    main()
