"""What every drill needs: a scratch folder, processes that end with it, the velum command, an NBD client.

Python 3 standard library only. A drill prints what it proves and its figures, ends within its time, and kills only the
processes it started itself.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VELUM = os.environ.get("VELUM", str(ROOT / "target" / "release" / "velum"))
BLOCK = 4096
MIB = 1 << 20


class Failed(Exception):
    """The drill shows that something does not hold."""


def say(text):
    print(text, flush=True)


def check(holds, text):
    """Fails the drill unless `holds`."""
    if not holds:
        raise Failed(text)


def missing(program):
    """A drill without its tools fails: one that is skipped proves nothing."""
    return f"`{program}` is not installed; `.ci/run` installs what drills need"


def run(*command, timeout=300, quiet=True, okay=(0,), **options):
    """Runs a command to its end; gives its standard output."""
    try:
        result = subprocess.run(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, text=True,
            stdin=subprocess.DEVNULL, **options)
    except FileNotFoundError:
        raise Failed(missing(command[0])) from None
    if result.returncode not in okay:
        raise Failed(f"`{' '.join(map(str, command))}` ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    if not quiet:
        sys.stderr.write(result.stderr)
    return result.stdout


def free_port():
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def file_hash(path):
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def tree(folder):
    """Every file below a folder with its hash, by relative path."""
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


class Drill(contextlib.AbstractContextManager):
    """A scratch folder and the processes of one drill; both are gone at its end. With KEEP set the folder stays."""

    def __init__(self, title, seconds):
        self.title, self.seconds = title, seconds
        self.processes, self.mounts = [], []

    def __enter__(self):
        say(f"== {self.title}")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="velum-drill-"))
        self.started = time.monotonic()
        signal.signal(signal.SIGALRM, self.too_long)
        signal.alarm(self.seconds)
        # What the drill started ends with it, also when it is told to end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return self

    def too_long(self, *_):
        raise Failed(f"not done after {self.seconds} s")

    def spawn(self, *command, log=None, **options):
        """Starts a process that ends with the drill."""
        out = open(log, "ab") if log else subprocess.DEVNULL
        options.setdefault("stdout", out)
        options.setdefault("stderr", out)
        try:
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, **options)
        except FileNotFoundError:
            raise Failed(missing(command[0])) from None
        self.processes.append(process)
        return process

    def __exit__(self, kind, error, _):
        signal.alarm(0)
        for undo in reversed(self.mounts):
            with contextlib.suppress(Exception):
                undo()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        took = time.monotonic() - self.started
        if error is None:
            say(f"   passed in {took:.0f} s")
        elif isinstance(error, Failed):
            say(f"   FAILED after {took:.0f} s: {error}")
            for log in sorted(self.folder.glob("*.log")):
                tail = log.read_text(errors="replace").splitlines()[-30:]
                say(f"   --- {log.name}\n" + "\n".join(f"   {line}" for line in tail))
        if "KEEP" in os.environ:
            say(f"   kept {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, Failed):
            sys.exit(1)
        return False


class Node:
    """A running `velum up`."""

    def __init__(self, drill, folder, *arguments, env=None):
        self.drill, self.folder, self.env = drill, pathlib.Path(folder), env
        self.socket = drill.folder / f"{self.folder.name}.sock"
        self.arguments = ["--nbd", f"unix:{self.socket}", "--admin", "127.0.0.1:0", *map(str, arguments)]
        self.process, self.admin, self.uris, self.start_seconds = None, None, [], None

    def settle(self):
        """Makes the node of a directory that `recover` made listen where this drill looks."""
        config = self.folder / "node.toml"
        text = config.read_text().replace('"127.0.0.1:10809"', f'"unix:{self.socket}"')
        config.write_text(text.replace('"127.0.0.1:9890"', '"127.0.0.1:0"'))
        self.arguments = []

    def start(self, seconds=30):
        """Starts it and waits until it serves."""
        began = time.monotonic()
        self.process = self.drill.spawn(
            VELUM, "--output", "json", "up", "--dir", self.folder, *self.arguments, stdout=subprocess.PIPE,
            stderr=open(self.drill.folder / f"{self.folder.name}.log", "ab"), env={**os.environ, **(self.env or {})})
        line = first_line(self.process, seconds)
        if not line:
            raise Failed(f"`velum up` ended with {self.process.wait()} before it served")
        ready = json.loads(line)
        self.admin, self.uris = ready["admin"], ready["nbd"]
        self.start_seconds = time.monotonic() - began
        return self

    def reclaim_after(self, grace):
        """Starts it again so that what has died is deleted so soon: with the usual hour, a drill that writes for long fills
        the disk with it, and then waits for room like any guest."""
        self.stop()
        config = self.folder / "node.toml"
        text, places = re.subn(r'(?<=\[reclaim\]\ngrace = )"\w+"', f'"{grace}"', config.read_text())
        check(places == 1, f"{config} does not say where expected when to reclaim")
        config.write_text(text)
        self.arguments = []
        return self.start()

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds=60):
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"the node did not stop within {seconds} s") from None
        check(code == 0, f"the node ended with {code} when it was asked to stop")

    def uri(self, volume="demo"):
        return f"nbd+unix:///{volume}?socket={self.socket}"

    def velum(self, *arguments, timeout=300):
        """A `velum` command against this node; gives its JSON."""
        return json.loads(run(VELUM, "--output", "json", *arguments, "--admin", self.admin, timeout=timeout))

    def flush(self, volume="demo"):
        began = time.monotonic()
        self.velum("volume", "flush", volume)
        return time.monotonic() - began

    def wait_until_complete(self, volume="demo", seconds=120):
        return wait_until_complete(self.velum, volume, seconds)


def wait_until_complete(velum, volume="demo", seconds=120):
    """Waits until every cloud has everything, as the volume's owner says, which `velum` asks; gives how long that took."""
    began = time.monotonic()
    while True:
        shown = velum("volume", "show", volume)
        behind = [cloud for cloud in shown["clouds"] if cloud["cursor_seq"] < shown["exposure"]["head_seq"]]
        if not behind and shown["exposure"]["dirty_bytes"] == 0:
            return time.monotonic() - began
        check(time.monotonic() - began < seconds, f"after {seconds} s still behind: {behind} {shown['exposure']}")
        time.sleep(0.2)


def first_line(process, seconds):
    """The first line a process prints, or nothing when it ends or takes too long."""
    import select
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise Failed(f"nothing was served within {seconds} s")
        piece = os.read(process.stdout.fileno(), 1)
        if not piece:
            return b""
        line += piece
    return line


class Nbd:
    """A small NBD client over a unix socket, for drills that must know which writes were acked."""

    READ, WRITE, DISCONNECT, FLUSH, TRIM = 0, 1, 2, 3, 4
    FUA = 1

    def __init__(self, path, volume="demo", seconds=None):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))
        self.buffer = b""
        magic = self.take(18)
        check(magic[:16] == b"NBDMAGICIHAVEOPT", "the server does not greet as NBD servers do")
        name = volume.encode()
        go = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(go)) + go)
        self.size = None
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            body = self.take(length)
            if kind == 1:
                break
            check(kind == 3, f"the server refuses the export ({kind:#x})")
            if struct.unpack(">H", body[:2])[0] == 0:
                self.size = struct.unpack(">Q", body[2:10])[0]

    def take(self, count):
        while len(self.buffer) < count:
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise ConnectionError("the server went away")
            self.buffer += piece
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def send(self, kind, cookie, offset=0, length=0, payload=b"", flags=0):
        head = struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)
        self.socket.sendall(head + payload)

    def reply(self):
        """The next reply's cookie; fails on an error of the server."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        check(magic == 0x67446698, "a reply does not begin as replies do")
        check(error == 0, f"the server answered error {error}")
        return cookie

    def read(self, offset, length):
        self.send(self.READ, 1, offset, length)
        self.reply()
        return self.take(length)

    def write(self, offset, payload):
        self.send(self.WRITE, 1, offset, len(payload), payload)
        self.reply()

    def flush(self):
        self.send(self.FLUSH, 1)
        self.reply()

    def close(self):
        with contextlib.suppress(OSError):
            self.send(self.DISCONNECT, 0)
            self.socket.close()
