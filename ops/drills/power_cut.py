#!/usr/bin/env python3
"""All three nodes lose power at once, under verified load, and with it a random part of what they had not synced: what was behind a
barrier is there again, and what was only acked is gone only if the volume's lineage says so.

CYCLES sets the number of cuts, SEED what is drawn. Needs root, for mounts and for another boot id.
"""

import os
import random
import statistics
import threading
import time
import uuid

from cluster import Cluster, Host
from drill import MIB, VELUM, Drill, check, say
from load import Load
from lossy import Disk

CYCLES = int(os.environ.get("CYCLES", "4"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE = 32 * MIB
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Machine(Host):
    """A host that power can be cut from: it has a disk of its own, and another boot id after each cut."""

    settings = '[journal]\nfile_bytes = "16MiB"\nfiles_initial = 2\nbytes_max = "256MiB"\n\n'

    def place(self):
        self.disk, self.boot = Disk(self.cluster.drill, self.folder), self.folder / "boot_id"
        self.disk.prove()
        self.power_on()
        return "disk/node"

    def power_on(self):
        self.boot.write_text(f"{uuid.uuid4()}\n")
        self.command = ("unshare", "--mount", "sh", "-c", f'mount --bind {self.boot} {BOOT_ID} && exec {VELUM} "$@"', "sh")


def push(machines, chance, going):
    """Some of what was written and not synced gets to the disks at any time."""
    while going.is_set():
        time.sleep(chance.uniform(0.02, 0.2))
        chance.choice(machines).disk.push(chance)


def cut(machines):
    """All disks first: what a node learns of that it can not have synced."""
    for machine in machines:
        machine.disk.cut()
    for machine in machines:
        machine.kill()
    # A node's own view of mounts holds on to the disks of the others, too.
    for machine in machines:
        machine.disk.restore()
        machine.power_on()


with Drill(f"power cut from three nodes at once, {CYCLES} times", 120 + CYCLES * 60) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE, memory="64MiB", host=Machine)
    machines = list(cluster.hosts.values())
    load, lineages, gone, back = Load(cluster.doors, SIZE, chance, patience=30, barriers_share=0.003), 0, 0, []
    lineage = cluster.volume()["lineage"]
    for cycle in range(CYCLES):
        pushing = threading.Event()
        pushing.set()
        pusher = threading.Thread(target=push, args=(machines, random.Random(chance.random()), pushing))
        load.start()
        pusher.start()
        time.sleep(chance.uniform(2, 5))
        pushing.clear()
        pusher.join()
        cut(machines)
        load.halt()
        began = time.monotonic()
        for machine in machines:
            machine.spawn()
        for machine in machines:
            machine.await_ready()
        cluster.await_copies(3)
        back.append(time.monotonic() - began)
        before, lineage = lineage, cluster.volume()["lineage"]
        missing = load.verify(after_loss=lineage != before)
        lineages, gone = lineages + (lineage != before), gone + missing
        say(f"   lineage {before} -> {lineage}; acked writes that are gone: {missing}; serving again after {back[-1]:.1f} s")
    check(load.barriers > CYCLES, f"only {load.barriers} barriers were acked")
    say(f"   no write behind one of {load.barriers} barriers was lost; of {load.acked} acked writes {gone} are gone, and the "
        f"lineage changed {lineages} times; all three serve and keep the journal {statistics.median(back):.1f} s (median) later")
