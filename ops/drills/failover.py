#!/usr/bin/env python3
"""Three nodes under verified load while nodes are killed, half the time the owner: no acked write is lost, no read is wrong.

CYCLES sets the number of kills, SEED what is drawn, KIND what befalls nodes: kill (default), or pause (SIGSTOP for 1 to 30 s).
Clients connect to any node that lives. The time until the first write is served again is shown beside the goal.
"""

import os
import random
import statistics
import time

from cluster import Client, Cluster, Model
from drill import MIB, Drill, Failed, Nbd, check, say

CYCLES = int(os.environ.get("CYCLES", "12"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
KIND = os.environ.get("KIND", "kill")
CLIENTS, SIZE = 4, 64 * MIB


def first_served(clients, since, seconds):
    """How long after `since` the first write was acked that was sent then or later."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for client in clients:
            if client.fault:
                raise client.fault
        acked = [ack for client in clients for sent, ack in client.acks[-200:] if sent >= since]
        if acked:
            return min(acked) - since
        time.sleep(0.01)
    raise Failed(f"no write was served within {seconds} s")


def befall(cluster, clients, victim, chance):
    """One node is gone for a while. How long no write was served."""
    host, began = cluster.hosts[victim], time.monotonic()
    if KIND == "pause":
        admin, host.admin = host.admin, None
        host.pause()
        gone = chance.choice((chance.uniform(1, 3), chance.uniform(3, 8), chance.uniform(8, 30)))
        served = first_served(clients, began, 60)
        time.sleep(max(0.0, began + gone - time.monotonic()))
        host.go_on()
        host.admin = admin
    else:
        host.kill()
        served = first_served(clients, began, 60)
        time.sleep(chance.uniform(0.2, 2))
        host.start()
    return served


def verify(cluster, model):
    """Every acked write, read through each node that serves the volume."""
    read = 0
    for host in cluster.live():
        try:
            nbd = Nbd(host.socket, seconds=35)
        except (OSError, Failed):
            continue
        model.verify(nbd)
        nbd.close()
        read += 1
    check(read > 0, "no node serves the volume")


def halt(clients):
    for client in clients:
        client.going.clear()
    for client in clients:
        client.join(60)
        if client.fault:
            raise client.fault
        check(not client.is_alive(), "a client hangs: its requests are not answered and its connection does not end")


def start(cluster, model, chance):
    clients = [Client(cluster, number, CLIENTS, model, chance.random()) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    return clients


with Drill(f"three nodes, {CYCLES} x {KIND} under verified load", 120 + CYCLES * (40 if KIND == "pause" else 15)) as drill:
    say(f"   seed {SEED}")
    chance, model = random.Random(SEED), Model()
    cluster = Cluster(drill, SIZE)
    clients = start(cluster, model, chance)
    of_owner, of_others = [], []
    for cycle in range(CYCLES):
        time.sleep(chance.uniform(0.5, 2))
        owner = cluster.owner()
        others = [number for number in cluster.hosts if number != owner]
        victim = owner if chance.random() < 0.5 else chance.choice(others)
        (of_owner if victim == owner else of_others).append(befall(cluster, clients, victim, chance))
        cluster.await_copies(3)
        if (cycle + 1) % 10 == 0:
            halt(clients)
            verify(cluster, model)
            acked = sum(client.acked for client in clients)
            say(f"   {cycle + 1} times; {acked} acked writes, {len(model.blocks)} blocks verified, "
                f"{sum(client.reconnects for client in clients)} reconnects in these ten")
            check(acked > 100, "the load was no load")
            clients = start(cluster, model, chance)
    halt(clients)
    verify(cluster, model)

    def figures(times):
        if not times:
            return "never"
        ordered = sorted(times)
        return (f"{len(times)} times, no write served for {statistics.median(times):.2f} s (median), "
                f"{ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]:.2f} s (p99)")

    say(f"   no acked write was lost; the owner: {figures(of_owner)}; another node: {figures(of_others)}; goal 2.5 s and 5 s")
