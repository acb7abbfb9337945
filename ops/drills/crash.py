#!/usr/bin/env python3
"""kill -9 again and again under verified load: every acked write is there, every time."""

import os
import random
import statistics
import time

from drill import MIB, Drill, Node, check, say
from load import Load

CYCLES = int(os.environ.get("CYCLES", "50"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE = 256 * MIB


with Drill(f"kill -9 {CYCLES} times under verified load", 60 + CYCLES * 14) as drill:
    say(f"   seed {SEED}")
    chance, starts = random.Random(SEED), []
    node = Node(drill, drill.folder / "data", "--size", f"{SIZE}B", "--memory", "128MiB").start()
    node.reclaim_after("10s")
    load = Load(lambda: [node.socket], SIZE, chance, in_flight=16, patience=60)
    for cycle in range(CYCLES):
        load.start()
        time.sleep(chance.uniform(0.2, 1.2))
        node.kill()
        load.halt()
        node.start()
        starts.append(node.start_seconds)
        load.verify()
        if (cycle + 1) % 10 == 0:
            say(f"   {cycle + 1} kills, {load.acked} acked writes, {len(load.model.blocks)} blocks verified each time")
    check(load.acked > CYCLES * 20, f"only {load.acked} writes were acked: the load was no load")
    flushed = node.flush()
    load.verify()
    node.stop()
    say(f"   none of {load.acked} acked writes was lost; start-up after a crash: median {statistics.median(starts):.2f} s, "
        f"worst {max(starts):.2f} s; `volume flush` at the end {flushed:.1f} s")
    check(max(starts) < 10, f"a start took {max(starts):.1f} s")
