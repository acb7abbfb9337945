#!/usr/bin/env python3
"""All three nodes lose power at once, under verified load, and with it a random part of what they had not synced: what was behind a
barrier is there again, and what was only acked is gone only if the volume's lineage says so, and then no handle from before leads to
the volume any more.

CYCLES sets the number of cuts, SEED what is drawn. Needs root, for mounts and for another boot id.
"""

import os
import random
import statistics
import threading
import time
import uuid

from cluster import Cluster, Host
from drill import BLOCK, MIB, VELUM, Drill, Nbd, check, say
from handles import attach, connect, fails
from load import Load
from lossy import Disk

CYCLES = int(os.environ.get("CYCLES", "4"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE = 32 * MIB
CHANGES_MAX = 10
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


def start_again(cluster, machines):
    """All of them, until all keep the journal."""
    for machine in machines:
        machine.spawn()
    for machine in machines:
        machine.await_ready()
    cluster.await_copies(3)


def handles_end(cluster, machines):
    """A handle outlives a loss of power unless acked writes were lost with it; whoever attaches anew then goes on."""
    for attempt in range(1, CHANGES_MAX + 1):
        lineage = cluster.volume()["lineage"]
        export = attach(cluster, "--host", "before")
        nbd = connect(machines[attempt % len(machines)], export)
        for place in range(256):
            nbd.write(place * BLOCK, bytes([attempt]) * BLOCK)
        cut(machines)
        start_again(cluster, machines)
        if cluster.volume()["lineage"] != lineage:
            break
        for machine in machines:
            again = connect(machine, export)
            check(again.read(0, BLOCK) == bytes([attempt]) * BLOCK, "an acked write is gone, and the handle still good")
            again.close()
        cluster.wait(lambda: cluster.hosts[cluster.owner()].velum("volume", "detach", "demo", export) or True, "a detach", 20)
    else:
        check(False, f"none of {CHANGES_MAX} cuts changed the lineage")
    for machine in machines:
        fails(Nbd, machine.socket, export, seconds=5, with_word="refuses the export")
    fresh = attach(cluster, "--host", "after")
    for stamp, machine in enumerate(machines, 1):
        again = connect(machine, fresh)
        again.write(0, bytes([stamp]) * BLOCK)
        check(again.read(0, BLOCK) == bytes([stamp]) * BLOCK, "what was written is not read")
        again.close()
    say(f"   after {attempt} cuts the lineage changed, and the handle from before failed at every node; a fresh one works at all")


with Drill(f"power cut from three nodes at once, {CYCLES} times", 120 + (CYCLES + CHANGES_MAX) * 60) as drill:
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
        start_again(cluster, machines)
        back.append(time.monotonic() - began)
        before, lineage = lineage, cluster.volume()["lineage"]
        missing = load.verify(after_loss=lineage != before)
        lineages, gone = lineages + (lineage != before), gone + missing
        say(f"   lineage {before} -> {lineage}; acked writes that are gone: {missing}; serving again after {back[-1]:.1f} s")
    check(load.barriers > CYCLES, f"only {load.barriers} barriers were acked")
    say(f"   no write behind one of {load.barriers} barriers was lost; of {load.acked} acked writes {gone} are gone, and the "
        f"lineage changed {lineages} times; all three serve and keep the journal {statistics.median(back):.1f} s (median) later")
    handles_end(cluster, machines)
