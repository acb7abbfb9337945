#!/usr/bin/env python3
"""kill -9 again and again under verified load: every acked write is there, every time."""

import os
import random
import statistics
import struct
import threading
import time

from drill import BLOCK, MIB, Drill, Failed, Nbd, Node, check, say

CYCLES = int(os.environ.get("CYCLES", "50"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
THREADS, IN_FLIGHT, SIZE = 4, 16, 256 * MIB


def contents(block, stamp):
    """A block that says which write of which block it is, all over."""
    return struct.pack("<QQ", block, stamp) * (BLOCK // 16)


class Writer(threading.Thread):
    """Writes blocks that no other writer touches, and remembers what was acked and what was only sent."""

    def __init__(self, number, node, model, seed):
        super().__init__()
        self.number, self.node, self.model, self.random = number, node, model, random.Random(seed)
        self.acked, self.fault = 0, None

    def run(self):
        try:
            self.write(Nbd(self.node.socket))
        except (ConnectionError, OSError):
            pass  # The node was killed: the requests in flight stay unknown.
        except Failed as fault:
            self.fault = fault

    def write(self, nbd):
        flying = {}
        while True:
            while len(flying) < IN_FLIGHT:
                cookie = self.random.getrandbits(60)
                if self.random.random() < 0.02:
                    flying[cookie] = None
                    nbd.send(Nbd.FLUSH, cookie)
                    continue
                count = self.random.choice((1, 1, 1, 2, 8))
                first = (self.random.randrange(SIZE // BLOCK // THREADS // 8) * THREADS + self.number) * 8
                if any(item and first // 8 == item[0] // 8 for item in flying.values()):
                    continue
                run = [(first + at, self.model.send(first + at)) for at in range(count)]
                flying[cookie] = (first, run)
                payload = b"".join(contents(block, stamp) for block, stamp in run)
                nbd.send(Nbd.WRITE, cookie, first * BLOCK, len(payload), payload)
            item = flying.pop(nbd.reply())
            if item:
                for block, stamp in item[1]:
                    self.model.ack(block, stamp)
                self.acked += 1


class Model:
    """Per block: the last acked stamp, and those sent after it that may or may not have taken effect."""

    def __init__(self):
        self.blocks, self.stamp, self.lock = {}, 0, threading.Lock()

    def send(self, block):
        with self.lock:
            self.stamp += 1
            self.blocks.setdefault(block, [0, set()])[1].add(self.stamp)
            return self.stamp

    def ack(self, block, stamp):
        with self.lock:
            state = self.blocks[block]
            state[0] = stamp
            state[1] = {sent for sent in state[1] if sent > stamp}

    def verify(self, nbd):
        """Reads every block ever written; what is found is the truth from then on."""
        for block, state in sorted(self.blocks.items()):
            found = nbd.read(block * BLOCK, BLOCK)
            number, stamp = struct.unpack("<QQ", found[:16])
            if stamp:
                check(found == contents(block, stamp) and number == block, f"block {block} holds a mixture of writes")
            check(stamp == state[0] or stamp in state[1],
                  f"block {block}: acked write {state[0]} is gone, found {stamp} (sent after it: {sorted(state[1])})")
            self.blocks[block] = [stamp, set()]


with Drill(f"kill -9 {CYCLES} times under verified load", 60 + CYCLES * 14) as drill:
    say(f"   seed {SEED}")
    chance, model, starts, acked = random.Random(SEED), Model(), [], 0
    node = Node(drill, drill.folder / "data", "--size", f"{SIZE}B", "--memory", "128MiB").start()
    node.reclaim_after("10s")
    for cycle in range(CYCLES):
        writers = [Writer(number, node, model, chance.random()) for number in range(THREADS)]
        for writer in writers:
            writer.start()
        time.sleep(chance.uniform(0.2, 1.2))
        node.kill()
        for writer in writers:
            writer.join()
            if writer.fault:
                raise writer.fault
            acked += writer.acked
        node.start()
        starts.append(node.start_seconds)
        reader = Nbd(node.socket)
        model.verify(reader)
        reader.close()
        if (cycle + 1) % 10 == 0:
            say(f"   {cycle + 1} kills, {acked} acked writes, {len(model.blocks)} blocks verified each time")
    check(acked > CYCLES * 20, f"only {acked} writes were acked: the load was no load")
    flushed = node.flush()
    model.verify(Nbd(node.socket))
    node.stop()
    say(f"   none of {acked} acked writes was lost; start-up after a crash: median {statistics.median(starts):.2f} s, "
        f"worst {max(starts):.2f} s; `volume flush` at the end {flushed:.1f} s")
    check(max(starts) < 10, f"a start took {max(starts):.1f} s")
