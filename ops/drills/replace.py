#!/usr/bin/env python3
"""A node is lost with its disk, under verified load, and another one joins in its place under a new number: three nodes keep the
volume's journal again by themselves, and no acked write is lost. Once another node than the volume's owner, and once the owner.

SEED sets what is drawn.
"""

import os
import random
import shutil
import time

from cluster import Cluster
from drill import MIB, Drill, Failed, check, say
from load import Load

SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
SIZE = 64 * MIB


def standing(cluster):
    """What the owner says of the volume."""
    told = (volume for host in cluster.live() for volume in host.velum("cluster", "status", timeout=10)["volumes"])
    return next((volume for volume in told if volume["name"] == "demo" and volume["current"]), None)


def is_kept_by(cluster, numbers):
    """Whether these nodes are the ones that keep the journal, and none of them lags."""
    volume = standing(cluster)
    return volume is not None and sorted(volume["members"]) == sorted(volume["current"]) == sorted(numbers)


def remove(cluster, number):
    """As an operator does: again, as long as the node is said to be on its way out or to own something."""
    left = lambda: any(host.velum("cluster", "remove", number) for host in cluster.live())
    cluster.wait(left, f"node {number} to be removed", 60)


def replace(cluster, load, number):
    """The times without service, until the node is removed, and from the newcomer's first step until three keep the journal."""
    lost = cluster.hosts.pop(number)
    began = time.monotonic()
    lost.kill()
    shutil.rmtree(lost.folder / "node")
    served = load.first_served(began)
    remove(cluster, number)
    removed = time.monotonic() - began
    exposed = standing(cluster)
    joined = time.monotonic()
    newcomer = cluster.join(cluster.live()[0])
    cluster.wait(lambda: is_kept_by(cluster, cluster.hosts), "three nodes that keep the journal", 60)
    whole = time.monotonic() - joined
    roles = {node["node"]: node["role"] for node in cluster.status()["nodes"]}
    check(set(roles) == set(cluster.hosts) and number < newcomer.number, f"the nodes are {roles}, wanted {list(cluster.hosts)}")
    check(set(roles.values()) == {"leader", "voter"}, f"not all nodes vote: {roles}")
    return served, removed, whole, exposed["current"] if exposed else None


with Drill("a node and its disk are lost and replaced, under verified load", 180) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE)
    load = Load(cluster.doors, SIZE, chance)
    for is_owner in (False, True):
        load.start()
        time.sleep(2)
        owner = cluster.owner()
        victim = owner if is_owner else chance.choice([number for number in cluster.hosts if number != owner])
        served, removed, whole, between = replace(cluster, load, victim)
        time.sleep(1)
        load.halt()
        check(load.verify() == 0, "acked writes are gone")
        say(f"   {'the owner' if is_owner else 'another node'} lost: no write served for {served:.2f} s; removed after "
            f"{removed:.1f} s, journal kept by {between} then; {whole:.1f} s after the newcomer was invited three nodes vote and "
            "keep the journal")
    # The proof that the newcomers hold what they say: they are all that is left with one of the old ones.
    survivors = sorted(cluster.hosts)
    cluster.hosts[survivors[0]].kill()
    served = load.verify()
    check(load.acked > 1000, f"only {load.acked} writes were acked: the load was no load")
    say(f"   none of {load.acked} acked writes was lost, nor without node {survivors[0]}")
