#!/usr/bin/env python3
"""Three nodes and hosts that attach to one volume: handles work at every door at once and for one connection at a time, reads of a host
that is alone are answered by a lease, a stolen volume hears nothing more of whoever had it, permits keep two writers apart while nodes
are killed, and a region is handed back and forth.

HANDOVERS sets how often a region changes hands, SECONDS how long two writers work under kills, PAUSED how many seconds a client that is
robbed stands still, SEED what is drawn. Needs qemu-nbd, and fio with the nbd engine.
"""

import multiprocessing
import os
import random
import signal
import struct
import sys
import time
import urllib.request

from cluster import Cluster
from drill import BLOCK, MIB, Drill, Failed, Nbd, check, say
from handles import attach, connect, fails, owner

HANDOVERS = int(os.environ.get("HANDOVERS", "200"))
SECONDS = float(os.environ.get("SECONDS", "20"))
PAUSED = float(os.environ.get("PAUSED", "30"))
SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
REGION = 64 * MIB
SIZE = 4 * REGION


def block(stamp):
    return struct.pack("<Q", stamp) * (BLOCK // 8)


def handles(cluster):
    """One attachment, any door, one connection at a time."""
    export = attach(cluster, "--host", "one")
    hosts = list(cluster.hosts.values())
    fails(Nbd, hosts[0].socket, seconds=5)
    fails(hosts[0].velum, "volume", "attach", "demo", with_word="attached already")
    fails(Nbd, hosts[0].socket, "demo.aaaaaaaaaaaaaaaa", seconds=5)
    before = None
    for stamp, host in enumerate(hosts, 1):
        nbd = Nbd(host.socket, export, seconds=10)
        nbd.write(0, block(stamp))
        check(nbd.read(0, BLOCK) == block(stamp), "what was written is not read")
        if before:
            fails(before.read, 0, BLOCK)
        before = nbd
    leased, asked = (counted(cluster, f'velum_ensemble_reads_total{{by="{by}"}}') for by in ("lease", "question"))
    for _ in range(200):
        check(before.read(0, BLOCK) == block(len(hosts)), "what was written is not read")
    leased, asked = (counted(cluster, f'velum_ensemble_reads_total{{by="{by}"}}') - since
                     for by, since in (("lease", leased), ("question", asked)))
    check(leased + asked == 200 and leased >= 150, f"of 200 reads {leased:.0f} were answered by a lease, {asked:.0f} by a question")
    listed = hosts[0].velum("volume", "attachments", "demo")
    check([entry["host"] for entry in listed] == ["one"], f"listed is {listed}")
    owner(cluster).velum("volume", "detach", "demo", export)
    fails(before.read, 0, BLOCK)
    fails(Nbd, hosts[0].socket, export, seconds=5)
    nbd = connect(hosts[0], "demo")
    check(nbd.read(0, BLOCK) == block(len(hosts)), "the volume is not as its last writer left it")
    nbd.close()
    say("   a handle leads to the volume at every door, for one connection at a time, until it is detached")


def stalled_door(cluster):
    """A door stands still with a write in it; its client goes on elsewhere. What the door had comes too late."""
    export = attach(cluster, "--host", "moves on")
    slow = next(host for number, host in cluster.hosts.items() if number != cluster.owner())
    old = connect(slow, export)
    old.write(0, block(100))
    slow.pause()
    try:
        for _ in range(4):
            old.send(Nbd.WRITE, 1, 0, BLOCK, block(101))
        new = connect(owner(cluster), export)
        new.write(0, block(102))
    finally:
        slow.go_on()
    fails(lambda: [old.reply() for _ in range(4)])
    time.sleep(1)
    check(new.read(0, BLOCK) == block(102), "a write of a dead connection was done after its successor's")
    new.close()
    owner(cluster).velum("volume", "detach", "demo", export)
    say("   what a door that stood still had of a dead connection took no effect")


def overwrite(path, export, started):
    """In a process of its own: writes for as long as it may."""
    nbd = Nbd(path, export, seconds=10)
    nbd.socket.settimeout(60)
    cookie = 0
    try:
        while True:
            for _ in range(32):
                cookie += 1
                nbd.send(Nbd.WRITE, cookie, (cookie % 64) * BLOCK, BLOCK, block(1_000_000 + cookie))
            for _ in range(32):
                nbd.reply()
            started.set()
    except (OSError, Failed):
        sys.exit(1)


def stolen(cluster):
    """A client is paused with requests in flight, its volume stolen, and the client goes on."""
    first = attach(cluster, "--host", "paused")
    for number, host in enumerate(cluster.hosts.values()):
        started = multiprocessing.Event()
        connect(host, first).close()
        client = multiprocessing.Process(target=overwrite, args=(host.socket, first, started), daemon=True)
        client.start()
        check(started.wait(20), "the first client does not write")
        os.kill(client.pid, signal.SIGSTOP)
        second = attach(cluster, "--host", "thief", "--steal")
        nbd = connect(host, second)
        for place in range(64):
            nbd.write(place * BLOCK, block(place + 1))
        if number == 0:
            time.sleep(PAUSED)
        os.kill(client.pid, signal.SIGCONT)
        client.join(30)
        check(client.exitcode not in (None, 0), "the client whose volume was stolen goes on")
        for place in range(64):
            check(nbd.read(place * BLOCK, BLOCK) == block(place + 1), f"block {place} was written by whoever was robbed")
        nbd.close()
        fails(Nbd, host.socket, first, seconds=5)
        first = second
    owner(cluster).velum("volume", "detach", "demo", first)
    say(f"   a client that was paused, for {PAUSED:.0f} s once, and robbed wrote nothing more, at any door")


def permit(cluster, range_, export, *options):
    to = ("--to", export) if export else ()
    cluster.wait(lambda: owner(cluster).velum("volume", "permit", "demo", range_, *to, *options) or True, "a permit", 20)


def counted(cluster, sample):
    """What all nodes have counted of something."""
    total = 0
    for host in cluster.live():
        text = urllib.request.urlopen(f"{host.admin}/metrics", timeout=5).read().decode()
        total += sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(sample))
    return total


def refused_writes(cluster):
    return counted(cluster, 'velum_audit_refusals_total{gate="region"}')


def handed_over(cluster, chance):
    """Two writers count in one block, whoever has the permit; and each sees what the other one counted."""
    exports = [attach(cluster, "--shared", "--host", name, "--connections", "4") for name in ("left", "right")]
    number = cluster.owner()
    doors = [cluster.hosts[number], next(host for other, host in cluster.hosts.items() if other != number)]
    writers = [connect(door, export) for door, export in zip(doors, exports)]
    fails(writers[0].write, 0, block(1), with_word="error 1")
    permit(cluster, "0..64MiB", exports[0])
    writers[0].write(0, block(0))
    before = refused_writes(cluster)
    refused = 0
    began = time.monotonic()
    for count in range(HANDOVERS):
        turn = count % 2
        permit(cluster, "0..64MiB", exports[turn], "--steal")
        writer, other = writers[turn], writers[1 - turn]
        check(writer.read(0, BLOCK) == block(count), f"handover {count}: the count is not what the other one left")
        writer.write(0, block(count + 1))
        if chance.random() < 0.3:
            fails(other.write, 0, block(7), with_word="error 1")
            fails(other.write, REGION - BLOCK, block(7) * 2, with_word="error 1")
            refused += 2
    took = (time.monotonic() - began) / HANDOVERS
    counted = refused_writes(cluster) - before
    check(counted == refused, f"{refused} writes were refused, and {counted} counted")
    for writer in writers:
        check(writer.read(0, BLOCK) == block(HANDOVERS), "the last count is gone")
        writer.close()
    say(f"   {HANDOVERS} times handed over, {took * 1000:.0f} ms each; {refused} writes without a permit refused, without effect, counted")
    return exports


def side_by_side(cluster, chance, exports):
    """Two writers on regions of their own, at doors of any node, while nodes are killed."""
    permit(cluster, "64MiB..128MiB", exports[0], "--steal")
    permit(cluster, "128MiB..192MiB", exports[1], "--steal")
    model = [{}, {}]
    nbds = [None, None]
    stamp, kills, kill_at = 0, 0, time.monotonic() + 3
    until = time.monotonic() + SECONDS
    down = None
    while time.monotonic() < until or down:
        if down and time.monotonic() > kill_at - 2:
            down.start()
            down = None
        if not down and kill_at < time.monotonic() < until - 3:
            down = chance.choice(cluster.live())
            down.kill()
            kills += 1
            kill_at = time.monotonic() + 4
        for side in (0, 1):
            try:
                if nbds[side] is None:
                    nbds[side] = connect(chance.choice(cluster.live()), exports[side])
                place = chance.randrange(256)
                offset = (1 + side) * REGION + place * BLOCK
                if place in model[side] and chance.random() < 0.3:
                    found = nbds[side].read(offset, BLOCK)
                    check(found in model[side][place], f"side {side}, block {place} holds what was not written there last")
                    model[side][place] = [found]
                    continue
                stamp += 1
                model[side].setdefault(place, [bytes(BLOCK)]).append(block(stamp))
                nbds[side].write(offset, block(stamp))
                model[side][place] = [block(stamp)]
            except OSError:
                nbds[side] = None
            except Failed as fault:
                if "error 108" not in str(fault) and "refuses the export" not in str(fault):
                    raise
                nbds[side] = None
    for side in (0, 1):
        nbd = connect(owner(cluster), exports[side])
        for place, may_be in model[side].items():
            check(nbd.read((1 + side) * REGION + place * BLOCK, BLOCK) in may_be, f"side {side}, block {place}: a write is gone")
        nbd.close()
    check(stamp > 200, f"only {stamp} writes were tried: the load was no load")
    say(f"   two writers side by side: {stamp} writes, {kills} nodes killed, nothing mixed and nothing lost")


def verified_by_fio(cluster, chance):
    """fio on each of two regions, at doors of two nodes, while nodes are killed. qemu connects anew for it, to the same door, and sends
    again what it has no answer to."""
    clients = []
    for side, door in enumerate(list(cluster.hosts.values())[:2]):
        export = attach(cluster, "--shared", "--host", f"fio-{side}")
        permit(cluster, f"{64 * side}MiB..{64 * (side + 1)}MiB", export, "--steal")
        connect(door, export).close()
        local = cluster.drill.folder / f"side-{side}.sock"
        cluster.drill.spawn(
            "qemu-nbd", "--image-opts", "--persistent", "--shared=4", f"--socket={local}", "--export-name=side",
            f"driver=nbd,server.type=unix,server.path={door.socket},export={export},reconnect-delay=60",
            log=cluster.drill.folder / f"qemu-{side}.log")
        cluster.wait(local.exists, f"{local}", 20)
        clients.append(cluster.drill.spawn(
            "fio", f"--name=side-{side}", "--ioengine=nbd", f"--uri=nbd+unix:///side?socket={local}", "--rw=randwrite", "--bs=4k",
            "--iodepth=16", f"--offset={side * REGION}", "--size=32m", f"--rate_iops={8192 / SECONDS:.0f}", "--verify=crc32c",
            "--verify_backlog=512", "--verify_fatal=1", "--verify_state_save=0", log=cluster.drill.folder / f"fio-{side}.log"))
    kills = 0
    while any(client.poll() is None for client in clients):
        host = chance.choice(cluster.live())
        host.kill()
        kills += 1
        time.sleep(chance.uniform(0.5, 3))
        host.start()
        cluster.await_copies(3)
        time.sleep(chance.uniform(0, 2))
    for side, client in enumerate(clients):
        log = (cluster.drill.folder / f"fio-{side}.log").read_text(errors="replace")
        check(client.returncode == 0, f"fio on side {side} ended with {client.returncode}:\n{log[-2000:]}")
    check(kills > 1, f"only {kills} kills")
    say(f"   fio verified 32 MiB of two writers at doors of two nodes while nodes were killed {kills} times: no mismatch")


with Drill("hosts attached to one volume of three nodes", 360 + int(SECONDS + PAUSED + HANDOVERS / 2)) as drill:
    say(f"   seed {SEED}")
    chance = random.Random(SEED)
    cluster = Cluster(drill, SIZE)
    handles(cluster)
    stalled_door(cluster)
    stolen(cluster)
    exports = handed_over(cluster, chance)
    side_by_side(cluster, chance, exports)
    verified_by_fio(cluster, chance)
