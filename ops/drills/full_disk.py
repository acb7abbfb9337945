#!/usr/bin/env python3
"""One node's disk is full for a while, under verified load: service goes on, no acked write is lost, and the node keeps the
volume's journal when it has room again. Once another node than the volume's owner, and once the owner. First no cloud is in reach,
until the node says that its journal can not grow: before that a full disk is nothing to it.

SECONDS sets for how long, SEED what is drawn. Needs root, for mounts.
"""

import os
import random
import time

from cluster import Cluster, Host
from drill import MIB, Drill, check, run, say
from load import Load

SECONDS = float(os.environ.get("SECONDS", "8"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE, DISK = 64 * MIB, 1024 * MIB


class Confined(Host):
    """A host with a small disk of its own."""

    settings = '[journal]\nfile_bytes = "16MiB"\nfiles_initial = 2\nbytes_max = "960MiB"\n\n'

    def place(self):
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.disk)
        self.cluster.drill.mounts.append(lambda: run("umount", "--lazy", self.disk))
        return "disk/node"

    def fill(self):
        """Leaves no byte."""
        with open(self.disk / "ballast", "wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(MIB)):
                    pass
            except OSError:
                pass

    def clear(self):
        (self.disk / "ballast").unlink()


def lagging(cluster):
    """The nodes whose journal lacks acked writes, as the owner tells."""
    told = [volume for host in cluster.live() for volume in host.velum("cluster", "status", timeout=10)["volumes"]]
    return next((set(volume["members"]) - set(volume["current"]) for volume in told if volume["current"]), set())


def have_felt(cluster, host):
    """Fills the disk and has the journals grow until the node says that it has no room."""
    clouds, before = cluster.drill.folder / "clouds", len(host.log.read_bytes())
    clouds.rename(clouds.with_name("away"))
    host.fill()
    cluster.wait(lambda: b"the journal cannot grow" in host.log.read_bytes()[before:], "the node to lack room", 20)
    clouds.with_name("away").rename(clouds)


def befall(cluster, load, number):
    """How long no write was served, what became of the node, and how long until all is well again."""
    host = cluster.hosts[number]
    have_felt(cluster, host)
    began = time.monotonic()
    while time.monotonic() < began + SECONDS:
        host.fill()
        time.sleep(0.1)
    load.first_served(time.monotonic())
    pause = load.pause(began, time.monotonic())
    became = "ended and was started again" if host.process.poll() is not None else (
        "lagged" if number in lagging(cluster) else "did not lag")
    host.clear()
    room = time.monotonic()
    if host.process.poll() is not None:
        # As whatever looks after services does.
        host.start()
    cluster.await_copies(3)
    return pause, became, time.monotonic() - room


with Drill("one node's disk is full, under verified load", 180) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE, memory="1GiB", host=Confined)
    load = Load(cluster.doors, SIZE, chance, in_flight=4, patience=30)
    for is_owner in (False, True):
        load.start()
        time.sleep(1)
        owner = cluster.owner()
        victim = owner if is_owner else chance.choice([number for number in cluster.hosts if number != owner])
        pause, became, whole = befall(cluster, load, victim)
        load.halt()
        load.verify()
        say(f"   disk of {'the owner' if is_owner else 'another node'} full for {SECONDS:.0f} s more: no write served for "
            f"{pause:.2f} s; the node {became}; three keep the journal {whole:.1f} s after there was room")
    check(load.acked > 1000, f"only {load.acked} writes were acked: the load was no load")
    check(load.gave_up == 0, f"{load.gave_up} times a client was kept waiting for {load.patience} s")
    say(f"   none of {load.acked} acked writes was lost; {load.reconnects} reconnects")
