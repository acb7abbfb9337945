"""Three nodes as processes of their own over loopback, for drills: they share clouds and the root key, and nothing else."""

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import threading
import time

from drill import BLOCK, VELUM, Failed, Nbd, check, first_line, free_port, run


class Host:
    """One node with its own folder, door and admin address."""

    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.folder = cluster.drill.folder / f"host-{number}"
        self.folder.mkdir()
        self.socket, self.log = self.folder / "nbd.sock", cluster.drill.folder / f"host-{number}.log"
        self.config, self.process, self.admin = self.folder / "node.toml", None, None
        clouds = "".join(f'[[clouds]]\nname = "{name}"\nurl = "file://{cluster.drill.folder}/clouds/{name}"\n\n'
                         for name in "abc")
        self.peers = f"127.0.0.1:{free_port()}"
        self.config.write_text(
            f'dir = "node"\nnode = {number}\nplain_exports = true\nmemory = "{cluster.memory}"\n\n'
            f'[nbd]\nlisten = ["unix:{self.socket}"]\n\n[admin]\nlisten = "127.0.0.1:0"\n\n'
            f'[peers]\nlisten = "{self.peers}"\n\n[key]\nkeyfile = "{cluster.drill.folder}/root.key"\n\n'
            f'[reclaim]\ngrace = "10s"\n\n{clouds}')

    def spawn(self):
        self.process = self.cluster.drill.spawn(
            VELUM, "--output", "json", "node", "--config", self.config, stdout=subprocess.PIPE, stderr=open(self.log, "ab"))

    def await_ready(self, seconds=60):
        line = first_line(self.process, seconds)
        check(line, f"node {self.number} ended before it served; see {self.log}")
        self.admin = json.loads(line)["admin"]
        return self

    def start(self):
        self.spawn()
        return self.await_ready()

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self.process, self.admin = None, None

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def velum(self, *arguments, timeout=120):
        return json.loads(run(VELUM, "--output", "json", *arguments, "--admin", self.admin, timeout=timeout))


class Cluster:
    """Three hosts in one cluster, and one volume."""

    def __init__(self, drill, size, nodes=3, memory="128MiB"):
        self.drill, self.size, self.memory, self.hosts = drill, size, memory, {}
        run(VELUM, "key", "init", "--keyfile", drill.folder / "root.key")
        first = self.add(1)
        run(VELUM, "cluster", "init", "--config", first.config)
        first.start()
        for _ in range(nodes - 1):
            self.join(first)
        self.await_voters(nodes)
        first.velum("volume", "create", "demo", "--size", f"{size}B")
        first.velum("volume", "allow", "demo", f"uid:{os.getuid()}", "write")
        self.await_copies(nodes)

    def add(self, number):
        self.hosts[number] = Host(self, number)
        return self.hosts[number]

    def join(self, member):
        offer = member.velum("cluster", "token")
        host = self.add(offer["node"])
        run(VELUM, "cluster", "join", "--config", host.config, "--token", offer["token"])
        return host.start()

    def live(self):
        return [host for host in self.hosts.values() if host.admin]

    def status(self):
        """What any living node says of the cluster."""
        fault = None
        for host in self.live():
            try:
                return host.velum("cluster", "status", timeout=10)
            except (Failed, subprocess.TimeoutExpired) as error:
                fault = error
        raise Failed(f"no node answers: {fault}")

    def owner(self):
        """The node that owns the volume."""
        for node in self.status()["nodes"]:
            if "demo" in node["volumes"]:
                return node["node"]
        return None

    def await_voters(self, count, seconds=60):
        self.wait(lambda: len([node for node in self.status()["nodes"] if node["role"] in ("leader", "voter")
                               and node["reached"]]) >= count, f"{count} nodes vote and are reached", seconds)

    def await_copies(self, count, seconds=60):
        """Waits until so many nodes keep the volume's journal and none of them lags."""
        def whole():
            for host in self.live():
                for volume in host.velum("cluster", "status", timeout=10)["volumes"]:
                    if volume["name"] == "demo" and len(volume["current"] or []) >= min(count, 3):
                        return True
            return False
        self.wait(whole, f"{count} copies of the journal", seconds)

    def wait(self, so, what, seconds):
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                if so():
                    return
            check(time.monotonic() < deadline, f"waited {seconds} s in vain for: {what}")
            time.sleep(0.1)


def contents(block, stamp):
    """A block that says which write of which block it is, all over."""
    return struct.pack("<QQ", block, stamp) * (BLOCK // 16)


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


class Client(threading.Thread):
    """Writes blocks that no other client touches, reads some of them back, and connects to any node that serves it again when
    its connection ends. Remembers when what it sent was acked."""

    IN_FLIGHT = 8

    def __init__(self, cluster, number, count, model, seed):
        super().__init__(daemon=True)
        self.cluster, self.number, self.count, self.model = cluster, number, count, model
        self.random, self.going = random.Random(seed), threading.Event()
        self.acked, self.reconnects, self.fault, self.acks = 0, 0, None, []
        self.going.set()

    def run(self):
        try:
            while self.going.is_set():
                nbd = self.connect()
                if nbd is None:
                    return
                try:
                    self.work(nbd)
                except (ConnectionError, OSError):
                    pass
                except Failed as fault:
                    # ESHUTDOWN: the node stops; what was in flight may be done or not.
                    if "error 108" not in str(fault):
                        raise
                nbd.socket.close()
                self.reconnects += 1
        except Failed as fault:
            self.fault = fault

    def connect(self):
        while self.going.is_set():
            for host in self.random.sample(list(self.cluster.hosts.values()), len(self.cluster.hosts)):
                try:
                    return Nbd(host.socket, seconds=3)
                except (OSError, Failed):
                    pass
            time.sleep(0.02)
        return None

    def work(self, nbd):
        flying = {}
        while self.going.is_set() or flying:
            while len(flying) < self.IN_FLIGHT and self.going.is_set():
                self.send(nbd, flying)
            cookie = nbd.reply()
            blocks, sent_at = flying.pop(cookie)
            if blocks and blocks[0] == "read":
                self.judge(blocks[1], nbd.take(BLOCK))
                continue
            now = time.monotonic()
            for block, stamp in blocks:
                self.model.ack(block, stamp)
            if blocks:
                self.acked += 1
                self.acks.append((sent_at, now))

    def send(self, nbd, flying):
        cookie, now = self.random.getrandbits(60), time.monotonic()
        if self.random.random() < 0.02:
            flying[cookie] = ([], now)
            return nbd.send(Nbd.FLUSH, cookie)
        chunk = self.random.randrange(self.cluster.size // BLOCK // self.count // 8)
        first = (chunk * self.count + self.number) * 8
        busy = {item[0][1] // 8 if item[0][0] == "read" else item[0][0][0] // 8 for item in flying.values() if item[0]}
        if first // 8 in busy:
            return None
        if self.random.random() < 0.2:
            flying[cookie] = (("read", first), now)
            return nbd.send(Nbd.READ, cookie, first * BLOCK, BLOCK)
        run_of = [(first + at, self.model.send(first + at)) for at in range(self.random.choice((1, 1, 1, 2, 8)))]
        flying[cookie] = (run_of, now)
        payload = b"".join(contents(block, stamp) for block, stamp in run_of)
        return nbd.send(Nbd.WRITE, cookie, first * BLOCK, len(payload), payload)

    def judge(self, block, found):
        """A read under load: nobody else writes this block, and nothing of it is in flight."""
        with self.model.lock:
            state = self.model.blocks.get(block, [0, set()])
            number, stamp = struct.unpack("<QQ", found[:16])
            check(stamp == 0 or (found == contents(block, stamp) and number == block),
                  f"block {block} holds a mixture of writes: it begins with {number} {stamp} and should be {state}; "
                  f"same all over: {found == found[:16] * (BLOCK // 16)}")
            check(stamp == state[0] or stamp in state[1],
                  f"a read of block {block} under load: acked write {state[0]} is gone, found {stamp} of {sorted(state[1])}")
            if stamp != state[0]:
                self.model.blocks[block] = [stamp, {sent for sent in state[1] if sent > stamp}]
