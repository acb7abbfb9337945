"""Verified load for drills: clients that remember what was acked and what was behind a barrier, and the model that judges reads.

Every client has blocks of its own, so what may be found in a block is known: the last acked write, or one sent after it whose
fate is not known. After a loss of power that the guests were told of, what was not behind a barrier may be missing, too.
"""

import random
import struct
import threading
import time

from drill import BLOCK, Failed, Nbd, check

CHUNK = 8  # Blocks that a client writes or reads together at most.
RUN = 64  # Blocks that are read together to verify.


def contents(block, stamp):
    """A block that says which write of which block it is, all over."""
    return struct.pack("<QQ", block, stamp) * (BLOCK // 16)


class Block:
    """The history of one block: the last acked stamp, the last that a barrier covers, and all sent after that one."""

    __slots__ = ("acked", "safe", "sent")

    def __init__(self):
        self.acked, self.safe, self.sent = 0, 0, []


class Model:
    """What may be found in each block. Stamps rise with every write sent."""

    def __init__(self):
        self.blocks, self.stamp, self.lock = {}, 0, threading.Lock()

    def send(self, block):
        with self.lock:
            self.stamp += 1
            self.blocks.setdefault(block, Block()).sent.append(self.stamp)
            return self.stamp

    def ack(self, block, stamp):
        with self.lock:
            self.blocks[block].acked = stamp

    def cover(self, writes):
        """A barrier is acked that was sent after these writes were."""
        with self.lock:
            for number, stamp in writes:
                block = self.blocks[number]
                block.safe = max(block.safe, stamp)
                block.sent = [sent for sent in block.sent if sent > stamp]

    def judge(self, number, found, after_loss=False):
        """Fails unless the block may hold this; from then on it must. Gives the last acked stamp if that is gone."""
        with self.lock:
            block = self.blocks.get(number) or Block()
            told, stamp = struct.unpack("<QQ", found[:16])
            check(found == (contents(number, stamp) if stamp else bytes(BLOCK)),
                  f"block {number} holds a mixture of writes: it begins with {told} {stamp}, acked is {block.acked}")
            floor = block.safe if after_loss else block.acked
            check(stamp == floor or (stamp > floor and stamp in block.sent),
                  f"block {number}: write {floor} was {'behind an acked barrier' if after_loss else 'acked'} and is gone, "
                  f"found {stamp} (acked {block.acked}, covered {block.safe}, sent {block.sent})")
            lost = block.acked if stamp < block.acked else None
            if number in self.blocks:
                block.acked = stamp
                block.sent = [sent for sent in block.sent if sent <= stamp]
                if after_loss:
                    block.safe, block.sent = stamp, []
            return lost

    def verify(self, nbd, after_loss=False):
        """Reads every block up to the last one written. How many acked writes are gone, which only a loss of power excuses."""
        last, lost = max(self.blocks, default=0), 0
        for first in range(0, last + 1, RUN):
            count = min(RUN, nbd.size // BLOCK - first)
            found = nbd.read(first * BLOCK, count * BLOCK)
            for at in range(count):
                gone = self.judge(first + at, found[at * BLOCK:][:BLOCK], after_loss)
                lost += gone is not None
        return lost


class Client(threading.Thread):
    """Writes, reads and has barriers on blocks that no other client touches, through any door that takes it, until told to end."""

    def __init__(self, load, number, seed):
        super().__init__(daemon=True)
        self.load, self.number, self.random = load, number, random.Random(seed)
        self.acked, self.barriers, self.reconnects, self.gave_up, self.fault = 0, 0, 0, 0, None
        self.acks, self.uncovered = [], []

    def run(self):
        try:
            while nbd := self.connect():
                try:
                    self.work(nbd)
                except TimeoutError:
                    self.gave_up += 1
                except OSError:
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
        while self.load.going.is_set():
            for door in self.random.sample(self.load.doors(), len(self.load.doors())):
                try:
                    nbd = Nbd(door, self.load.export, seconds=min(3, self.load.patience))
                    nbd.socket.settimeout(self.load.patience)
                    return nbd
                except (OSError, Failed):
                    pass
            time.sleep(0.02)
        return None

    def work(self, nbd):
        flying = {}
        try:
            while self.load.going.is_set() or flying:
                while self.load.going.is_set() and len(flying) < self.load.in_flight:
                    self.send(nbd, flying)
                cookie = nbd.reply()
                self.done(nbd, *flying[cookie])
                del flying[cookie]
        finally:
            # A barrier that was not answered covers nothing; the next one covers what it would have.
            for what, _, writes, _ in flying.values():
                if what == "barrier":
                    self.uncovered += writes

    def send(self, nbd, flying):
        cookie, now, draw = self.random.getrandbits(60), time.monotonic(), self.random.random()
        if draw < self.load.barriers_share:
            flying[cookie] = ("barrier", None, self.uncovered, now)
            self.uncovered = []
            return nbd.send(Nbd.FLUSH, cookie)
        chunk = self.random.randrange(self.load.size // BLOCK // self.load.count // CHUNK) * self.load.count + self.number
        if any(chunk == busy for _, busy, _, _ in flying.values()):
            return None
        first, count = chunk * CHUNK, self.random.choice((1, 1, 1, 2, CHUNK))
        if draw > 0.8:
            flying[cookie] = ("read", chunk, range(first, first + count), now)
            return nbd.send(Nbd.READ, cookie, first * BLOCK, count * BLOCK)
        what, flags = ("fua", Nbd.FUA) if draw < 2 * self.load.barriers_share else ("write", 0)
        writes = [(block, self.load.model.send(block)) for block in range(first, first + count)]
        flying[cookie] = (what, chunk, writes, now)
        payload = b"".join(contents(block, stamp) for block, stamp in writes)
        return nbd.send(Nbd.WRITE, cookie, first * BLOCK, len(payload), payload, flags)

    def done(self, nbd, what, _, blocks, sent_at):
        if what == "read":
            found = nbd.take(len(blocks) * BLOCK)
            for at, block in enumerate(blocks):
                self.load.model.judge(block, found[at * BLOCK:][:BLOCK])
            return
        if what == "barrier":
            self.barriers += 1
            return self.load.model.cover(blocks)
        for block, stamp in blocks:
            self.load.model.ack(block, stamp)
        if what == "fua":
            self.load.model.cover(blocks)
        else:
            self.uncovered += blocks
        self.acked += 1
        self.acks.append((sent_at, time.monotonic()))


class Load:
    """Clients on one volume. `doors` gives the sockets to try; a request that is not answered in `patience` seconds is given up
    with its connection, and counted. As many as `barriers_share` of all requests are barriers, and as many writes with FUA."""

    def __init__(self, doors, size, chance, count=4, in_flight=8, patience=3, barriers_share=0.02, export="demo"):
        self.doors, self.size, self.count, self.in_flight, self.patience = doors, size, count, in_flight, patience
        self.barriers_share, self.export = barriers_share, export
        self.chance, self.model, self.going, self.clients = chance, Model(), threading.Event(), []
        self.acked, self.barriers, self.reconnects, self.gave_up = 0, 0, 0, 0

    def start(self):
        self.going.set()
        self.clients = [Client(self, number, self.chance.random()) for number in range(self.count)]
        for client in self.clients:
            client.start()

    def halt(self):
        """Ends the clients when what they have in flight is answered; fails if one of them saw something wrong."""
        self.going.clear()
        for client in self.clients:
            client.join(60)
            check(not client.is_alive(), "a client hangs: its requests are not answered and its connection does not end")
        self.look()
        for count in ("acked", "barriers", "reconnects", "gave_up"):
            setattr(self, count, getattr(self, count) + sum(getattr(client, count) for client in self.clients))
        self.clients = []

    def look(self):
        for client in self.clients:
            if client.fault:
                raise client.fault

    def first_served(self, since, seconds=60):
        """How long after `since` the first write was acked that was sent then or later."""
        return self.served(since, seconds, min)

    def all_served(self, since, seconds=60):
        """The same for the last of the clients to have one acked."""
        return self.served(since, seconds, max)

    def served(self, since, seconds, which):
        while time.monotonic() < since + seconds:
            self.look()
            firsts = [next((ack for sent, ack in client.acks if sent >= since), None) for client in self.clients]
            if None not in firsts or (which is min and any(firsts)):
                return which(filter(None, firsts)) - since
            time.sleep(0.01)
        raise Failed(f"no write of {'any' if which is min else 'each'} client was served within {seconds} s")

    def pause(self, since, until):
        """The longest time between two moments in which no write was acked."""
        self.look()
        times = sorted(ack for client in self.clients for _, ack in client.acks if since <= ack <= until)
        times = [since, *times, until]
        return max(after - before for before, after in zip(times, times[1:]))

    def verify(self, after_loss=False):
        """Every block, read through each door that takes a client. How many acked writes a loss of power has taken."""
        read, lost = 0, 0
        for door in self.doors():
            try:
                nbd = Nbd(door, self.export, seconds=35)
            except (OSError, Failed):
                continue
            lost += self.model.verify(nbd, after_loss)
            nbd.close()
            read += 1
        check(read > 0, "no node serves the volume")
        return lost
