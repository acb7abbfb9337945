#!/usr/bin/env python3
"""What a node makes of its clouds, beside bare `object_store` and the same stores: a table of medians, ratios and ranges.

usage: clouds.py [--pairs 5] [--seconds 5] [--mib 128] [--latency-ms 30] [--mb-per-s 100] [--work NAME,...]

The three clouds are buckets of one store in memory (ops/examples/bench_store.rs), which counts what it is asked, and which
waits before each answer where that is said. Both sides sign and send their requests with the same crate to the same
store; each round measures one and then the other, the order turning with every round. VELUM names another binary; the two
examples lie beside it: cargo build --release -p velum-ops --examples. Needs fio with the nbd engine, and qemu-nbd.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import shutil
import statistics
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "drills"))
from drill import MIB, VELUM, Drill, Failed, Node, check, free_port, run, say  # noqa: E402
from side_by_side import QemuNbd, figure, fio  # noqa: E402

EXAMPLES = pathlib.Path(VELUM).parent / "examples"
CLOUDS = "abc"
SEGMENT = 8 * MIB
# Most that is held back at once: half of the dirty budget, so that no guest waits in between.
HELD_MIB_MAX = 128
SIZE = 1024 * MIB
# Records to a checkpoint where checkpoints are to be seen; `up` waits for 1,024.
CHECKPOINT_RECORDS = 4


class Store:
    """The store of a run, with its controls and counters."""

    def __init__(self, drill):
        self.port = free_port()
        self.process = drill.spawn(EXAMPLES / "bench_store", self.port, log=drill.folder / "store.log")
        self.env = {"AWS_ENDPOINT": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "bench",
                    "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
        deadline = time.monotonic() + 10
        while True:
            try:
                self.control("reset")
                return
            except OSError:
                check(self.process.poll() is None and time.monotonic() < deadline, "the store does not start")
                time.sleep(0.05)

    def control(self, what):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/_bench/{what}", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def answer(self, latency_ms=0, mb_per_s=0):
        """How it answers from now on; no bandwidth is no bound."""
        self.control(f"set?latency_ms={latency_ms}&mb_per_s={mb_per_s}")

    def counters(self, bucket):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_bench/{bucket}", timeout=10) as answer:
            return json.load(answer)

    def last_put(self, buckets):
        """The moment the last object of these buckets was stored."""
        now = time.monotonic()
        return max(now - self.counters(bucket)["since_put_us"] / 1e6 for bucket in buckets)

    def clear(self, buckets):
        for bucket in buckets:
            self.control(f"clear?bucket={bucket}")

    def bare(self, *arguments):
        """Bare object_store at work; gives its report."""
        report = run(EXAMPLES / "bench_object_store", *arguments, env={**os.environ, **self.env}, timeout=600)
        return json.loads(report)


class Volume:
    """A node over the store's three buckets, with a volume."""

    def __init__(self, drill, store, name, **settings):
        self.store, self.folder = store, drill.folder / name
        store.clear(CLOUDS)
        given = [word for cloud in CLOUDS for word in ("--cloud", f"{cloud}=s3://{cloud}/velum")]
        self.node = Node(drill, self.folder, "--size", f"{SIZE}B", *given, env=store.env).start()
        if settings:
            self.node.stop()
            self.set(**settings)
            self.node.start()

    def set(self, **settings):
        """Changes settings of the node, named section_key."""
        config = self.folder / "node.toml"
        text = config.read_text()
        for name, value in settings.items():
            section, key = name.split("_", 1)
            text, count = re.subn(rf"(\[{section}\]\n(?:\w.*\n)*?{key} = ).*", rf"\g<1>{value}", text)
            check(count == 1, f"node.toml has no {section}.{key}")
        config.write_text(text)

    def fio(self, options, seconds=None):
        return fio(self.node.uri(), options, seconds)

    def settle(self):
        """Everything is in all three clouds."""
        self.node.flush()
        self.node.wait_until_complete()

    def metric(self, name):
        """The sum of a metric's series."""
        with urllib.request.urlopen(f"{self.node.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*?\}})? (\S+)$", text, re.MULTILINE))

    def cool(self):
        """Starts the node anew with nothing in its caches but the map of the volume."""
        self.store.answer()
        self.node.stop()
        shutil.rmtree(self.folder / "node-1" / "cache", ignore_errors=True)
        self.node.start()
        self.fio("--rw=read --bs=4k --iodepth=8 --zonemode=strided --zonesize=4k --zonerange=8m")

    def memory_mib(self, key="VmRSS"):
        return memory_mib(self.node.process.pid, key)


def memory_mib(pid, key):
    """A process's resident memory: now (VmRSS) or at most so far (VmHWM)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)[1]) / 1024


def row(work, unit, ours, theirs=None, beside="", more_is_better=False):
    """One line of the table; a ratio is that of one round's two figures."""
    def show(figures):
        digits = 0 if statistics.median(figures) >= 100 else 2
        median, least, most = (f"{figure:,.{digits}f}" for figure in (statistics.median(figures), min(figures), max(figures)))
        return f"{median}{unit} ({least} to {most})"
    shown = [show(ours), "", "", ""]
    if theirs:
        ratios = [mine / other for mine, other in zip(ours, theirs)]
        shown[1:] = [f"{beside} {show(theirs)}", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    say(f"| {work} | {' | '.join(shown)} |")


def by_turns(rounds, ours, theirs):
    """Both sides' figures of each round, the order turning."""
    mine, others = [], []
    for turn in range(rounds):
        sides = [(mine, ours), (others, theirs)]
        for figures, measure in sides if turn % 2 == 0 else reversed(sides):
            figures.append(measure())
    return mine, others


def drain(drill, store, arguments, held):
    """Time from the order to flush, or from the first write, until the last cloud has the last object."""
    settings = {"flush_bytes": '"256MiB"', "flush_interval": '"1h"'} if held else {}
    volume = Volume(drill, store, "held" if held else "drained", **settings)
    mib = min(arguments.mib, HELD_MIB_MAX) if held else arguments.mib
    sizes = []

    def ours():
        volume.settle()
        store.control("reset")
        write = functools.partial(volume.fio, f"--rw=write --bs=1m --iodepth=4 --io_size={mib}m --refill_buffers")
        if held:
            write()
        began = time.monotonic()
        if not held:
            write()
        volume.settle()
        took = store.last_put(CLOUDS) - began
        sizes[:] = store.counters("a")["put_bytes"]
        return mib * 1.048576 / took

    def bare():
        store.clear("xyz")
        urls = [f"s3://{bucket}/bare" for bucket in "xyz"]
        report = store.bare("put", 4, ",".join(map(str, sizes)), *urls)
        return sum(sizes) / 1e6 / report["seconds"]

    ours()
    mine, others = by_turns(arguments.pairs, ours, bare)
    what = f"{mib} MiB held back, then flushed" if held else f"{mib} MiB written and flushed as they come"
    row(f"drain to three clouds, {what}", " MB/s", mine, others, "bare PUTs")
    volume.node.stop()
    store.clear(CLOUDS + "xyz")


def requests(drill, store, arguments):
    """What a cloud is asked and sent for what guests write, with the settings of `up` and with many checkpoints."""
    works = (("1 MiB sequential", f"--rw=write --bs=1m --iodepth=4 --io_size={2 * arguments.mib}m"),
             ("4 KiB random", f"--rw=randwrite --bs=4k --iodepth=32 --io_size={2 * arguments.mib}m"))
    for number, (name, options) in enumerate(works):
        for often in (False, True):
            settings = {"checkpoint_records": CHECKPOINT_RECORDS} if often else {}
            volume = Volume(drill, store, f"requests-{number}-{often}", **settings)
            volume.settle()
            store.control("reset")
            before = volume.metric("velum_nbd_written_bytes_total"), volume.metric("velum_checkpoint_stored_bytes_total")
            volume.fio(options)
            volume.settle()
            written = volume.metric("velum_nbd_written_bytes_total") - before[0]
            pages = volume.metric("velum_checkpoint_stored_bytes_total") - before[1]
            puts = [store.counters(cloud)["put"] for cloud in CLOUDS]
            per_byte = [put["bytes"] / written for put in puts]
            work = f"writes of {name}, {written / MIB:.0f} MiB"
            if often:
                check(pages > 0, f"{written / MIB:.0f} MiB of writes brought no checkpoint: give a larger --mib")
                checkpoints = f"a checkpoint every {CHECKPOINT_RECORDS} records, {pages / 1e6:.1f} MB of them"
                row(f"{work}: bytes to a cloud for each byte, {checkpoints}", "", per_byte)
            else:
                row(f"{work}: PUTs to a cloud for 8 MiB", "", [put["requests"] / written * SEGMENT for put in puts])
                row(f"{work}: bytes to a cloud for each byte, {pages / 1e6:.1f} MB of checkpoints", "", per_byte)
            volume.node.stop()


def cold(drill, store, arguments):
    """Reads that no cache has, from a store far away."""
    volume = Volume(drill, store, "cold")
    volume.fio("--rw=write --bs=1m --iodepth=4")
    volume.settle()
    far = {"latency_ms": arguments.latency_ms}
    figures = {key: ([], []) for key in ("QD1", "QD32", "sequential")}

    def ours():
        volume.cool()
        store.answer(**far)
        one = volume.fio("--rw=randread --bs=4k --iodepth=1", arguments.seconds)
        figures["QD1"][0].append(one["read"]["clat_ns"]["percentile"]["50.000000"] / 1e6)
        figures["QD32"][0].append(figure(volume.fio("--rw=randread --bs=4k --iodepth=32 --number_ios=800"), "iops"))
        volume.cool()
        store.answer(**far, mb_per_s=arguments.mb_per_s)
        figures["sequential"][0].append(figure(volume.fio("--rw=read --bs=1m --iodepth=4", arguments.seconds), "mbps"))
        store.answer()

    def bare():
        store.answer(**far)
        one = store.bare("ranges", 1, arguments.seconds, 4096, "s3://a/velum")
        figures["QD1"][1].append(one["median_us"] / 1e3)
        many = store.bare("ranges", 32, 1, 4096, "s3://a/velum")
        figures["QD32"][1].append(many["requests"] / many["seconds"])
        store.answer(**far, mb_per_s=arguments.mb_per_s)
        whole = store.bare("whole", 4, arguments.seconds, "s3://a/velum")
        figures["sequential"][1].append(whole["bytes"] / 1e6 / whole["seconds"])
        store.answer()

    by_turns(arguments.pairs, ours, bare)
    latency = f"{arguments.latency_ms} ms store"
    row(f"cold 4 KiB read QD1, {latency}, median latency", " ms", *figures["QD1"], "bare range GETs")
    row(f"cold 4 KiB read QD32, {latency}", "/s", *figures["QD32"], "bare range GETs")
    gain = [many * one / 1e3 for many, one in zip(figures["QD32"][0], figures["QD1"][0])]
    row(f"cold 4 KiB read, QD32's rate over QD1's, {latency}", "x", gain)
    row(f"cold 1 MiB sequential read QD4, {latency}, link of {arguments.mb_per_s} MB/s", " MB/s", *figures["sequential"],
        "bare GETs")
    volume.node.stop()


def memory(drill, store, arguments):
    """Resident memory, at rest and at most under a load of writes and reads."""
    rest, load, others_rest, others_load = [], [], [], []
    for turn in range(min(arguments.pairs, 3)):
        volume = Volume(drill, store, f"memory-{turn}")
        scratch = drill.folder / f"memory-qemu-{turn}"
        scratch.mkdir()
        other = QemuNbd(drill, scratch)
        time.sleep(2)
        rest.append(volume.memory_mib())
        others_rest.append(memory_mib(other.process.pid, "VmRSS"))
        for uri in (volume.node.uri(), other.uri):
            for options in ("randwrite --bs=4k --iodepth=32", "write --bs=1m --iodepth=4", "randread --bs=4k --iodepth=32"):
                fio(uri, f"--rw={options}", arguments.seconds)
        load.append(volume.memory_mib("VmHWM"))
        others_load.append(memory_mib(other.process.pid, "VmHWM"))
        volume.node.stop()
        other.process.kill()
    row("resident memory at rest", " MiB", rest, others_rest, "qemu-nbd")
    row("resident memory under load, most", " MiB", load, others_load, "qemu-nbd")


def starts(drill, store, arguments):
    """Times until a node serves."""
    first, clean, killed = [], [], []
    for turn in range(min(arguments.pairs, 5)):
        volume = Volume(drill, store, f"start-{turn}")
        first.append(volume.node.start_seconds)
        volume.node.stop()
        clean.append(volume.node.start().start_seconds)
        volume.fio("--rw=randwrite --bs=4k --iodepth=32 --io_size=64m")
        volume.node.kill()
        killed.append(volume.node.start().start_seconds)
        volume.node.stop()
    row("start: a new cluster with a volume", " s", first)
    row("start: after a clean stop", " s", clean)
    row("start: after `kill -9` behind 64 MiB of 4 KiB writes", " s", killed)


def recover(drill, store, arguments):
    """Time from `velum recover` on two of three clouds until the volume has been read from."""
    volume = Volume(drill, store, "burnt")
    volume.fio("--rw=write --bs=1m --iodepth=4")
    volume.fio("--rw=randwrite --bs=4k --iodepth=32 --io_size=32m")
    volume.settle()
    volume.node.kill()
    given = [word for cloud in "ab" for word in ("--cloud", f"{cloud}=s3://{cloud}/velum")]
    # Given up once, the third cloud is none of the cluster's any more.
    missing = ["--accept-missing", "c"]
    for verify in ("chain", "present"):
        times = []
        for turn in range(min(arguments.pairs, 3)):
            new, began = drill.folder / f"recovered-{verify}-{turn}", time.monotonic()
            run(VELUM, "--output", "json", "recover", *given, *missing, "--verify", verify, "--keyfile",
                volume.folder / "root.key", "--dir", new, env={**os.environ, **store.env}, timeout=300)
            missing = []
            node = Node(drill, new, env=store.env)
            node.settle()
            node.start()
            fio(node.uri(), "--rw=randread --bs=4k --iodepth=1 --number_ios=1", None)
            times.append(time.monotonic() - began)
            node.stop()
        row(f"recover from two of three clouds to the first read, 256 MiB in a 1 GiB volume, --verify {verify}", " s", times)


WORKS = {
    "drain held": functools.partial(drain, held=True),
    "drain as it comes": functools.partial(drain, held=False),
    "requests": requests,
    "cold": cold,
    "memory": memory,
    "starts": starts,
    "recover": recover,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each work (default 5)")
    parser.add_argument("--seconds", type=float, default=5, help="length of one run (default 5)")
    parser.add_argument("--mib", type=int, default=128, help="MiB written for a drain (default 128)")
    parser.add_argument("--latency-ms", type=int, default=30, help="the far store's latency (default 30)")
    parser.add_argument("--mb-per-s", type=int, default=100, help="its bandwidth for sequential reads (default 100)")
    parser.add_argument("--work", default="", help="only works whose name has one of these words, separated by commas")
    arguments = parser.parse_args()
    words = [word for word in arguments.work.split(",") if word]
    works = [work for name, work in WORKS.items() if not words or any(word in name for word in words)]
    check(works, f"no work has {words} in its name; there are: {', '.join(WORKS)}")
    for program in ("bench_store", "bench_object_store"):
        if not (EXAMPLES / program).exists():
            raise SystemExit(f"{EXAMPLES / program} is missing: cargo build --release -p velum-ops --examples")
    with Drill("velum and its clouds", 7200) as drill:
        store = Store(drill)
        say("| work | velum: median (range) | beside | ratio | range |\n|---|---|---|---|---|")
        for work in works:
            work(drill, store, arguments)
            store.clear(CLOUDS)


if __name__ == "__main__":
    main()
