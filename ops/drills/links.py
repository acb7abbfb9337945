"""The links between nodes go through this proxy, which holds back, delays or narrows what one node says to another.

Held bytes arrive when the way is open again, as TCP would have it. Who dials is seen from the tables of /proc; both ends are
processes of the drill. The proxy is a process of its own, so that the drill's load does not slow it.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pathlib

from drill import free_port

PIECE = 1 << 16
PIECES_ON_THE_WAY = 64
CUT = float("inf")


class Links:
    """`add` gives the address that a node's settings are to advertise; `running` is told which process a node is."""

    def __init__(self, drill):
        self.wire, other = multiprocessing.Pipe()
        process = multiprocessing.Process(target=Proxy(other).run, daemon=True)
        process.start()
        drill.mounts.append(process.kill)

    def add(self, number, behind):
        port = free_port()
        self.tell("listen", number, port, behind)
        return f"127.0.0.1:{port}"

    def running(self, number, pid):
        self.tell("running", number, pid)

    def slow(self, sender, receiver, seconds):
        """What a node says to another takes so much longer, or does not arrive (`CUT`)."""
        self.tell("slow", sender, receiver, seconds)

    def narrow(self, sender, receiver, rate):
        """No more than so many bytes a second get from a node to another."""
        self.tell("narrow", sender, receiver, rate)

    def cut(self, sender, receivers, both_ways=True):
        for receiver in receivers:
            self.slow(sender, receiver, CUT)
            if both_ways:
                self.slow(receiver, sender, CUT)

    def refuse(self, dialler, listeners):
        """A node's own connections end, and no new ones are let through; those of the others to it are."""
        for listener in listeners:
            self.tell("refuse", dialler, listener)

    def heal(self):
        self.tell("heal")

    def tell(self, *words):
        self.wire.send(words)
        self.wire.recv()


class Proxy:
    """What runs in the other process."""

    def __init__(self, wire):
        self.wire, self.pids, self.live, self.changed = wire, {}, {}, None
        self.seconds, self.rates, self.busy_until, self.refused = {}, {}, {}, set()

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        self.changed = asyncio.Condition()
        orders = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self.wire.fileno(), lambda: orders.put_nowait(self.wire.recv()))
        while True:
            await self.obey(*await orders.get())
            self.wire.send("done")

    async def obey(self, order, *words):
        if order == "listen":
            number, port, behind = words
            host, behind_port = behind.rsplit(":", 1)
            meet = lambda reader, writer: self.meet(number, (host, int(behind_port)), reader, writer)
            await asyncio.start_server(meet, "127.0.0.1", port)
        elif order == "running":
            number, pid = words
            self.pids[number] = pid
        elif order == "slow":
            sender, receiver, seconds = words
            self.seconds[sender, receiver] = seconds
        elif order == "narrow":
            sender, receiver, rate = words
            self.rates[sender, receiver] = rate
        elif order == "refuse":
            self.refused.add(words)
            for writer in self.live.get(words, ()):
                writer.close()
        else:
            self.seconds, self.rates, self.refused = {}, {}, set()
        async with self.changed:
            self.changed.notify_all()

    async def meet(self, listener, behind, reader, writer):
        dialler = self.who(writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1])
        if dialler is None or (dialler, listener) in self.refused:
            return writer.close()
        await self.way_open(dialler, listener)
        try:
            inner_reader, inner_writer = await asyncio.open_connection(*behind)
        except OSError:
            return writer.close()
        live = self.live.setdefault((dialler, listener), set())
        live |= {writer, inner_writer}
        await asyncio.gather(self.pump((dialler, listener), reader, inner_writer),
                             self.pump((listener, dialler), inner_reader, writer))
        live -= {writer, inner_writer}

    async def pump(self, way, reader, writer):
        """Pieces are on the way side by side, as many as a connection has in flight."""
        pieces = asyncio.Queue(PIECES_ON_THE_WAY)
        await asyncio.gather(self.depart(way, reader, pieces), self.arrive(way, writer, pieces))

    async def depart(self, way, reader, pieces):
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE):
                await self.squeeze(way, len(piece))
                seconds = self.seconds.get(way, 0)
                await pieces.put((asyncio.get_running_loop().time() + (seconds if seconds < CUT else 0), piece))
        await pieces.put((0, b""))

    async def arrive(self, way, writer, pieces):
        is_open = True
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0, due - asyncio.get_running_loop().time()))
            await self.way_open(*way)
            if not piece:
                writer.close()
                return
            # What comes for an end that is gone is taken and dropped, so that the other end is heard to its own.
            try:
                if is_open:
                    writer.write(piece)
                    await writer.drain()
            except OSError:
                is_open = False

    async def squeeze(self, way, length):
        """Waits until so many bytes are through: all connections of a way share what it carries."""
        if rate := self.rates.get(way):
            now = asyncio.get_running_loop().time()
            through = max(now, self.busy_until.get(way, 0)) + length / rate
            self.busy_until[way] = through
            await asyncio.sleep(through - now)

    async def way_open(self, sender, receiver):
        async with self.changed:
            await self.changed.wait_for(lambda: self.seconds.get((sender, receiver), 0) < CUT)

    def who(self, port, proxy_port):
        """The node whose process has the socket that is bound to a port."""
        local, remote = f"0100007F:{port:04X}", f"0100007F:{proxy_port:04X}"
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if (fields[1], fields[2]) == (local, remote):
                name = f"socket:[{fields[9]}]"
                return next((number for number, pid in self.pids.items() if name in open_files(pid)), None)
        return None


def open_files(pid):
    names = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                names.add(os.readlink(entry.path))
    return names
