#!/usr/bin/env python3
"""Three nodes under verified load whose links are cut, one way and both, flap, are slow or narrow: no acked write is lost, no read is
wrong, service goes on from where most nodes are, and no door keeps its clients hanging.

ROUNDS sets how often each trouble comes, SECONDS how long it lasts, TROUBLES (words of their names) which ones, SEED what is drawn.
"""

import os
import random
import statistics
import time

from cluster import Cluster
from drill import MIB, Drill, check, say
from links import CUT, Links
from load import Load

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SECONDS = float(os.environ.get("SECONDS", "5"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
CHOSEN = os.environ.get("TROUBLES", "").split(",")
SIZE = 64 * MIB
HANG_MAX = 10
NARROW = 640 << 10  # A small part of what the load writes.


class Placed:
    """Who is who when a trouble begins."""

    def __init__(self, links, owner, leader, numbers, chance):
        self.links, self.owner, self.leader, self.chance = links, owner, leader, chance
        self.others = [number for number in numbers if number != owner]
        self.third = next(number for number in self.others if number != leader)

    def but(self, number):
        return [other for other in (self.owner, *self.others) if other != number]


def flap(placed):
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        placed.links.cut(placed.owner, placed.others, placed.chance.random() < 0.5)
        time.sleep(placed.chance.uniform(0.1, 3))
        placed.links.heal()
        time.sleep(placed.chance.uniform(0.1, 1))


# Name, whether the owner leads, what happens, and whether the volume has to move for service to go on.
TROUBLES = [
    ("owner cut off", False, lambda at: at.links.cut(at.owner, at.others), True),
    ("owner that leads cut off", True, lambda at: at.links.cut(at.owner, at.others), True),
    ("leader cut off", False, lambda at: at.links.cut(at.leader, at.but(at.leader)), False),
    ("owner not heard", False, lambda at: at.links.cut(at.owner, at.others, both_ways=False), True),
    ("owner hears nobody", False, lambda at: [at.links.slow(other, at.owner, CUT) for other in at.others], True),
    ("owner cannot dial", False, lambda at: at.links.refuse(at.owner, at.others), True),
    ("owner and leader apart", False, lambda at: at.links.cut(at.owner, [at.leader]), True),
    ("links of the owner flap", False, flap, None),
    ("link to one node slow", False, lambda at: at.links.slow(at.owner, at.third, 0.1), False),
    ("link to one node narrow", False, lambda at: at.links.narrow(at.owner, at.third, NARROW), False),
]


def place(cluster, owner_leads):
    """Has the owner lead or not, by the word of the node that leads: others may not know yet."""
    def placed():
        status = cluster.hosts[cluster.leader()].velum("cluster", "status")
        leader, owner = status["node"], next((node["node"] for node in status["nodes"] if node["volumes"]), None)
        if leader != status["leader"] or owner is None:
            return None
        if (owner == leader) != owner_leads:
            heir = owner if owner_leads else next(number for number in cluster.hosts if number != owner)
            cluster.hosts[leader].velum("cluster", "transfer", heir)
            return None
        return Placed(cluster.links, owner, leader, cluster.hosts, chance)
    return cluster.wait(placed, "a leader and an owner as wanted", 30)


def befall(cluster, load, name, owner_leads, happen, moves):
    """One trouble. How long nobody, and how long not everybody was served."""
    placed = place(cluster, owner_leads)
    began = time.monotonic()
    happen(placed)
    if moves is None:
        load.first_served(time.monotonic())
    everybody = load.all_served(time.monotonic())
    time.sleep(max(0, began + SECONDS - time.monotonic()))
    pause = load.pause(began, time.monotonic())
    cluster.links.heal()
    if moves is not None:
        cluster.wait(lambda: (cluster.owner() != placed.owner) == moves,
                     f"{name}: the volume {'goes to another node' if moves else 'stays'}", 20)
    cluster.await_copies(3)
    say(f"   {name}: no write served for {pause:.2f} s, each client served again after {everybody:.2f} s")
    return pause, everybody


with Drill("three nodes whose links fail, under verified load", 120 + ROUNDS * len(TROUBLES) * int(30 + SECONDS)) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE, links=Links(drill))
    load = Load(cluster.doors, SIZE, chance, patience=HANG_MAX)
    pauses, lasts = [], []
    load.start()
    chosen = [trouble for trouble in TROUBLES if any(word in trouble[0] for word in CHOSEN)]
    for _ in range(ROUNDS):
        for trouble in chance.sample(chosen, len(chosen)):
            pause, last = befall(cluster, load, *trouble)
            pauses.append(pause), lasts.append(last)
    load.halt()
    load.verify()
    check(load.acked > 100 * len(pauses), f"only {load.acked} writes were acked: the load was no load")
    check(load.gave_up == 0, f"{load.gave_up} times a client was kept waiting for {HANG_MAX} s")
    say(f"   none of {load.acked} acked writes was lost; {load.reconnects} reconnects; no write served for "
        f"{statistics.median(pauses):.2f} s (median), {max(pauses):.2f} s (max), goal 2.5 s and 5 s; each client served again "
        f"after {statistics.median(lasts):.2f} s (median), {max(lasts):.2f} s (max)")
