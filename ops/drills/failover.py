#!/usr/bin/env python3
"""Three nodes under verified load while the volume is moved, and while nodes are killed, half the time the owner: no acked write is
lost, no read is wrong.

CYCLES sets the number of kills, MOVES of moves, SEED what is drawn, KIND what befalls nodes: kill (default), or pause (SIGSTOP for
1 to 30 s). Clients connect to any node that lives, by one attachment: so owners read by lease. With ATTACHED=0 they connect by
the volume's plain name, and owners ask a member about each read. The times without service are shown beside the goals.
"""

import os
import random
import statistics
import time

from cluster import Cluster
from drill import MIB, Drill, check, say
from load import Load

CYCLES = int(os.environ.get("CYCLES", "7"))
MOVES = int(os.environ.get("MOVES", "10"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
ATTACHED = os.environ.get("ATTACHED", "1") == "1"
KIND = os.environ.get("KIND", "kill")
SIZE = 64 * MIB


def befall(cluster, load, victim, chance):
    """One node is gone for a while. How long no write was served."""
    host, began = cluster.hosts[victim], time.monotonic()
    if KIND == "pause":
        admin, host.admin = host.admin, None
        host.pause()
        gone = chance.choice((chance.uniform(1, 3), chance.uniform(3, 8), chance.uniform(8, 30)))
        served = load.first_served(began)
        time.sleep(max(0.0, began + gone - time.monotonic()))
        host.go_on()
        host.admin = admin
    else:
        host.kill()
        served = load.first_served(began)
        time.sleep(chance.uniform(0.2, 2))
        host.start()
    return served


def moves(cluster, load, chance):
    """Has the volume served by one node after another, and no session end by it. The pauses of writes."""
    pauses = []
    for _ in range(MOVES):
        owner = cluster.owner()
        heir = chance.choice([number for number in cluster.hosts if number != owner])
        began = time.monotonic()
        cluster.hosts[owner].velum("volume", "move", "demo", "--to", heir)
        check(cluster.owner() == heir, f"the volume was moved to node {heir} and is owned by node {cluster.owner()}")
        time.sleep(0.5)
        pauses.append(load.pause(began, time.monotonic()))
        cluster.await_copies(3)
    load.halt()
    # Each client's last connection counts, too.
    ended = load.reconnects - load.count
    check(ended == 0, f"{MOVES} planned moves ended {ended} sessions")
    return pauses


def figures(times, tail):
    if not times:
        return "never"
    ordered = sorted(times)
    return (f"{len(times)} times, no write served for {statistics.median(times):.2f} s (median), "
            f"{ordered[min(len(ordered) - 1, int(len(ordered) * tail))]:.2f} s ({'max' if tail == 1 else 'p99'})")


with Drill(f"three nodes, {MOVES} moves and {CYCLES} x {KIND} under verified load",
           120 + MOVES * 5 + CYCLES * (40 if KIND == "pause" else 15)) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE)
    export = "demo"
    if ATTACHED:
        owner = cluster.hosts[cluster.owner()]
        # More than ever connect at once, also while a node that stands still has some.
        export = owner.velum("volume", "attach", "demo", "--connections", "16")["export"]
    load = Load(cluster.doors, SIZE, chance, export=export)
    load.start()
    time.sleep(1)
    pauses = moves(cluster, load, chance)
    say(f"   planned moves: {figures(pauses, 1)}, goal 0.25 s; no session ended")
    load.start()
    of_owner, of_others = [], []
    for cycle in range(CYCLES):
        time.sleep(chance.uniform(0.5, 2))
        owner = cluster.owner()
        others = [number for number in cluster.hosts if number != owner]
        victim = owner if chance.random() < 0.5 else chance.choice(others)
        (of_owner if victim == owner else of_others).append(befall(cluster, load, victim, chance))
        cluster.await_copies(3)
        if (cycle + 1) % 10 == 0:
            load.halt()
            load.verify()
            say(f"   {cycle + 1} times; {load.acked} acked writes, {load.barriers} barriers, {len(load.model.blocks)} blocks "
                f"verified, {load.reconnects} reconnects")
            load.start()
    load.halt()
    load.verify()
    check(load.acked > 100 * (CYCLES + MOVES), f"only {load.acked} writes were acked: the load was no load")
    say(f"   none of {load.acked} acked writes was lost; the owner: {figures(of_owner, 0.99)}; another node: "
        f"{figures(of_others, 0.99)}; goal 2.5 s and 5 s")
