#!/usr/bin/env python3
"""A client that does everything wrong, beside one that does everything right.

    ops/drills/nbd_hostile.py 127.0.0.1:10809 [EXPORT] [--slow] [--rounds N] [--seed N]
    ops/drills/nbd_hostile.py /run/velum/nbd.sock [EXPORT]

Raw sockets, standard library only. The first 64 KiB of the volume are overwritten. After each piece of malice the good
client writes and reads back; at the end the server must still serve. `--slow` adds the cases that wait for the server's
deadlines (about a minute). Exit 0: nothing bad happened to anybody but the hostile client.
"""

import argparse
import os
import random
import socket
import struct
import sys
import time

OPTION = b"IHAVEOPT"
REQUEST = 0x25609513
SIMPLE, CHUNK = 0x67446698, 0x668E33EF
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, UNSUP, INVALID, UNKNOWN, TOO_BIG = 1, 0x80000001, 0x80000003, 0x80000006, 0x80000009
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28


class Closed(Exception):
    """The server closed the connection."""


class Line:
    """One connection."""

    def __init__(self, where, timeout=20):
        if "/" in where:
            self.socket = socket.socket(socket.AF_UNIX)
            # Without a timeout, so that a full queue is waited for; unix sockets do not wait by themselves otherwise.
            self.socket.connect(where)
            self.socket.settimeout(timeout)
        else:
            host, port = where.rsplit(":", 1)
            self.socket = socket.create_connection((host, int(port)), timeout=timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *parts):
        try:
            self.socket.sendall(b"".join(parts))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def take(self, count):
        got = b""
        while len(got) < count:
            try:
                piece = self.socket.recv(count - len(got))
            except ConnectionResetError as error:
                raise Closed from error
            if not piece:
                raise Closed
            got += piece
        return got

    def close(self):
        self.socket.close()

    def gone(self):
        """True when the server closes the connection, whatever it sends before."""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def greet(self, flags=3):
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        self.take(2)
        self.send(struct.pack(">I", flags))

    def option(self, code, data=b"", length=None):
        self.send(OPTION, struct.pack(">II", code, len(data) if length is None else length), data)

    def reply(self):
        magic, _option, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == 0x3E889045565A9
        return kind, self.take(length)

    def last_reply(self):
        while True:
            kind, data = self.reply()
            if kind == ACK or kind >> 31:
                return kind, data

    def go(self, name, structured=False):
        self.greet()
        if structured:
            self.option(STRUCTURED)
            assert self.last_reply()[0] == ACK
        self.option(GO, struct.pack(">I", len(name)) + name + b"\0\0")
        size = None
        while True:
            kind, data = self.reply()
            if kind == 3 and data[:2] == b"\0\0":
                size = struct.unpack(">Q", data[2:10])[0]
            if kind == ACK:
                return size
            assert kind == 3, f"GO was answered with {kind:#x}"

    def request(self, command, offset=0, length=0, flags=0, cookie=1, payload=b"", magic=REQUEST):
        self.send(struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length), payload)

    def simple(self, data=0):
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert magic == SIMPLE, f"{magic:#x}"
        return error, cookie, self.take(data) if not error else b""


class Good:
    """Writes and reads back; must never notice anything."""

    def __init__(self, where, name):
        self.line, self.round = Line(where), 0
        self.size = self.line.go(name)

    def check(self, after):
        self.round += 1
        contents = struct.pack(">Q", self.round) * 512
        self.line.request(WRITE, 32768, 4096, payload=contents, cookie=self.round)
        assert self.line.simple() == (0, self.round, b""), f"the good client's write failed after: {after}"
        self.line.request(READ, 32768, 4096, cookie=self.round)
        assert self.line.simple(4096) == (0, self.round, contents), f"the good client's read failed after: {after}"


def must_drop(what, line):
    assert line.gone(), f"the connection should have been closed: {what}"
    line.close()


def choice(name, count=0, infos=b"", length=None):
    return struct.pack(">I", len(name) if length is None else length) + name + struct.pack(">H", count) + infos


def bad_handshakes(where, name, good):
    for flags in (4, 0xFFFFFFFF, 0x47455420):
        line = Line(where)
        line.greet(flags)
        must_drop(f"client flags {flags:#x}", line)
    line = Line(where)
    line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    must_drop("an HTTP request", line)
    line = Line(where)
    line.send(bytes.fromhex("1603010200010001fc0303") + bytes(500))
    must_drop("a TLS hello", line)
    line = Line(where)
    line.greet()
    line.send(b"IHAVEOPX" + struct.pack(">II", LIST, 0))
    must_drop("an option's magic", line)
    for code, length in ((LIST, 65537), (99, 0xFFFFFFFF), (EXPORT_NAME, 8193), (EXPORT_NAME, 0x80000000)):
        line = Line(where)
        line.greet()
        line.option(code, length=length)
        must_drop(f"option {code} of {length} bytes", line)
    for data in (b"no-such-volume", b"a\0b", b"\xff\xfe", b"n" * 4097):
        line = Line(where)
        line.greet()
        line.option(EXPORT_NAME, data)
        must_drop("an export name that is not there", line)
    line = Line(where)
    line.greet()
    for _ in range(10_000):
        try:
            line.option(LIST)
            line.last_reply()
        except Closed:
            break
    else:
        raise AssertionError("10,000 options are too many")
    good.check("bad handshakes")


def bad_options(where, name, good):
    query = struct.pack(">I", 4) + b"base"
    table = (
        ("list with data", LIST, b"x", INVALID),
        ("starttls", STARTTLS, b"", UNSUP),
        ("starttls with data", STARTTLS, b"x", INVALID),
        ("unknown option", 4242, b"abc", UNSUP),
        ("a name beyond the option", GO, choice(name, length=0xFFFFFFFF), INVALID),
        ("a name over the count", GO, choice(name, length=len(name) + 1), INVALID),
        ("too few infos", GO, choice(name, 3, b"\0\1"), INVALID),
        ("too many infos", GO, choice(name, 0, b"\0\1"), INVALID),
        ("an info twice", INFO, choice(name, 2, b"\0\3\0\3"), INVALID),
        ("name with NUL", GO, choice(name + b"\0"), INVALID),
        ("name not UTF-8", GO, choice(b"\xc3\x28"), INVALID),
        ("name of 3,000 bytes", GO, choice(b"n" * 3000), UNKNOWN),
        ("name of 4,097 bytes", GO, choice(b"n" * 4097), INVALID),
        ("unknown name", GO, choice(b"no-such-volume"), UNKNOWN),
        ("contexts before structured replies", SET_META, struct.pack(">I", len(name)) + name + bytes(4), INVALID),
        ("2^32 queries", SET_META, struct.pack(">I", len(name)) + name + b"\xff" * 4, TOO_BIG),
        ("a query without colon", LIST_META, struct.pack(">I", len(name)) + name + struct.pack(">I", 1) + query, INVALID),
        ("an option of 8 KiB and a byte", LIST, bytes(8193), TOO_BIG),
        ("an option of 64 KiB", 77, bytes(65536), TOO_BIG),
    )
    line = Line(where)
    line.greet()
    for what, code, data, expected in table:
        line.option(code, data)
        kind, _ = line.last_reply()
        assert kind == expected, f"{what}: {kind:#x} instead of {expected:#x}"
    line.option(ABORT)
    assert line.last_reply()[0] == ACK
    must_drop("abort", line)
    good.check("bad options")


def bad_requests(where, name, good):
    size = good.size
    mib = 1 << 20
    table = (
        ("read beyond the end", (READ, size - 1, 2), b"", EINVAL),
        ("read overflowing", (READ, 2**64 - 1, 2), b"", EINVAL),
        ("read of 4 GiB", (READ, 0, 2**32 - 1), b"", EINVAL),
        ("write beyond the end", (WRITE, size, 4), b"1234", ENOSPC),
        ("write overflowing", (WRITE, 2**64 - 2, 4), b"1234", ENOSPC),
        ("write of 33 MiB", (WRITE, 0, 33 * mib), bytes(33 * mib), EINVAL),
        ("trim beyond the end", (TRIM, size, 1), b"", EINVAL),
        ("zeroes beyond the end", (ZEROES, size - 1, 2), b"", ENOSPC),
        ("cache beyond the end", (CACHE, size, 1), b"", EINVAL),
        ("status without contexts", (STATUS, 0, 4096), b"", EINVAL),
        ("flush with an offset", (FLUSH, 1, 0), b"", EINVAL),
        ("flush with a length", (FLUSH, 0, 1), b"", EINVAL),
        ("unknown command", (42, 0, 0), b"", EINVAL),
        ("unknown flags", (READ, 0, 512, 0xFF00), b"", EINVAL),
        ("a read's flag without structured replies", (READ, 0, 512, 4), b"", EINVAL),
        ("write with unknown flags", (WRITE, 0, 4, 0x8000), b"1234", EINVAL),
    )
    line = Line(where)
    line.go(name)
    for number, (what, request, payload, expected) in enumerate(table):
        line.request(*request, cookie=number, payload=payload)
        error, cookie, _ = line.simple()
        assert (error, cookie) == (expected, number), f"{what}: {error} instead of {expected}"
    for command in (READ, WRITE, TRIM, ZEROES, CACHE):
        line.request(command, 0, 0, cookie=7)
        assert line.simple() == (0, 7, b""), f"command {command} of length zero"
    for _ in range(3):
        line.request(READ, 0, 16, cookie=5)
    assert [line.simple(16)[1] for _ in range(3)] == [5, 5, 5], "the same cookie three times"
    goodbye = struct.pack(">IHHQQI", REQUEST, 0, DISC, 1, 0, 0)
    line.send(goodbye, struct.pack(">IHHQQI", REQUEST, 0, WRITE, 1, 0, 4), b"late")
    must_drop("goodbye", line)
    for what, request in (
        ("magic", dict(command=READ, magic=0x12345678)),
        ("write of 64 MiB and a byte", dict(command=WRITE, length=(64 << 20) + 1)),
        ("write of 4 GiB", dict(command=WRITE, length=2**32 - 1)),
        ("unknown command with a length", dict(command=99, length=512)),
    ):
        line = Line(where)
        line.go(name)
        line.request(**request)
        must_drop(what, line)
    good.check("bad requests")


def short_payload(where, name, good):
    line = Line(where)
    line.go(name)
    line.request(WRITE, 0, 4096, payload=b"\xaa" * 4096)
    assert line.simple()[0] == 0
    line.request(WRITE, 0, 4096, payload=b"\xbb" * 4095)
    line.close()
    time.sleep(0.2)
    line = Line(where)
    line.go(name)
    line.request(READ, 0, 4096)
    assert line.simple(4096)[2] == b"\xaa" * 4096, "a write whose payload never came in full took effect"
    line.close()
    good.check("a short payload")


def noise(where, name, good, rounds, lots):
    for number in range(rounds):
        line = Line(where)
        try:
            stage = lots.randrange(4)
            if stage:
                line.greet()
            if stage == 2:
                line.option(lots.randrange(13), lots.randbytes(lots.randrange(200)), lots.choice([None, lots.randrange(2**32)]))
            if stage == 3:
                line.close()
                line = Line(where)
                line.go(name, structured=lots.random() < 0.5)
                # Offsets from 64 KiB on, so that random writes spare the good client's block.
                for _ in range(lots.randrange(1, 30)):
                    length = lots.choice([0, 1, 512, 4096, 100_000])
                    command = lots.randrange(10)
                    payload = lots.randbytes(length) if command == WRITE else b""
                    line.request(command, 65536 + lots.randrange(1 << 20), length, lots.choice([0, 0, 0, lots.randrange(64)]),
                                 lots.randrange(2**64), payload, lots.choice([REQUEST] * 30 + [lots.randrange(2**32)]))
            line.send(lots.randbytes(lots.randrange(300)))
        except Closed:
            pass
        line.close()
        if number % 50 == 0:
            good.check(f"noise, round {number}")
    good.check("noise")


def come_and_go(where, good):
    for _ in range(10_000):
        Line(where).close()
    good.check("10,000 connections that left at once")


def crowd(where, good):
    lines = []
    try:
        for _ in range(1200):
            lines.append(Line(where))
    except OSError:
        pass
    good.check("a crowd")
    for line in lines:
        line.close()
    time.sleep(0.5)
    line = Line(where)
    line.greet()
    line.close()
    good.check("a crowd that left")


def slow(where, name, good):
    line = Line(where, timeout=30)
    began = time.monotonic()
    line.take(18)
    for byte in b"\0\0\0\3IHAVEOPT\0":
        line.send(bytes([byte]))
        time.sleep(0.6)
    must_drop("a handshake at a byte per second", line)
    took = time.monotonic() - began
    assert 8 < took < 15, f"the handshake ended after {took:.0f} s"
    good.check("a slow handshake")

    line = Line(where, timeout=5)
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.go(name)
    try:
        for number in range(2000):
            line.request(READ, 0, 1 << 20, cookie=number)
    except TimeoutError:
        pass
    for _ in range(45):
        time.sleep(1)
        good.check("a client that takes no replies")
    try:
        for _ in range(100_000):
            line.request(FLUSH)
        raise AssertionError("a client that takes no replies should have been cut off")
    except (Closed, TimeoutError) as ended:
        assert isinstance(ended, Closed), "a client that takes no replies should have been cut off"
    line.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("where")
    parser.add_argument("export", nargs="?", default="")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    arguments = parser.parse_args()
    where, name = arguments.where, arguments.export.encode()
    print(f"seed {arguments.seed}", flush=True)
    good = Good(where, name)
    for what, malice in (
        ("handshakes", lambda: bad_handshakes(where, name, good)),
        ("options", lambda: bad_options(where, name, good)),
        ("requests", lambda: bad_requests(where, name, good)),
        ("a short payload", lambda: short_payload(where, name, good)),
        ("noise", lambda: noise(where, name, good, arguments.rounds, random.Random(arguments.seed))),
        ("coming and going", lambda: come_and_go(where, good)),
        ("a crowd", lambda: crowd(where, good)),
        ("slowness", lambda: slow(where, name, good) if arguments.slow else None),
    ):
        print(f"== {what}", flush=True)
        malice()
    print("the good client noticed nothing")


try:
    main()
except AssertionError as error:
    sys.exit(f"FAILED: {error}")
