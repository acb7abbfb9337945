"""Three nodes as processes of their own over loopback, for drills: they share clouds and the root key, and nothing else."""

import contextlib
import json
import os
import signal
import subprocess
import time

from drill import VELUM, Failed, check, first_line, free_port, run


class Host:
    """One node with its own folder, door and admin address. Kinds of hosts say where the node's directory is and how it is run."""

    command, settings = (VELUM,), ""

    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.folder = cluster.drill.folder / f"host-{number}"
        self.folder.mkdir()
        self.socket, self.log = self.folder / "nbd.sock", cluster.drill.folder / f"host-{number}.log"
        self.config, self.process, self.admin = self.folder / "node.toml", None, None
        clouds = "".join(f'[[clouds]]\nname = "{name}"\nurl = "file://{cluster.drill.folder}/clouds/{name}"\n\n'
                         for name in "abc")
        self.peers = f"127.0.0.1:{free_port()}"
        advertised = f'advertise = "{cluster.links.add(number, self.peers)}"\n' if cluster.links else ""
        self.config.write_text(
            f'dir = "{self.place()}"\nnode = {number}\nplain_exports = true\nmemory = "{cluster.memory}"\n\n'
            f'[nbd]\nlisten = ["unix:{self.socket}"]\n\n[admin]\nlisten = "127.0.0.1:0"\n\n'
            f'[peers]\nlisten = "{self.peers}"\n{advertised}\n[key]\nkeyfile = "{cluster.drill.folder}/root.key"\n\n'
            f'[reclaim]\ngrace = "10s"\n\n{self.settings}{clouds}')

    def place(self):
        """Where the node's directory is to be, below the host's folder."""
        return "node"

    def spawn(self):
        self.process = self.cluster.drill.spawn(
            *self.command, "--output", "json", "node", "--config", self.config, stdout=subprocess.PIPE, stderr=open(self.log, "ab"))
        if self.cluster.links:
            self.cluster.links.running(self.number, self.process.pid)

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
    """Three hosts in one cluster, and one volume. With `links`, the hosts reach each other through them only."""

    def __init__(self, drill, size, nodes=3, memory="128MiB", links=None, host=Host):
        self.drill, self.size, self.memory, self.links, self.host = drill, size, memory, links, host
        self.hosts = {}
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
        self.hosts[number] = self.host(self, number)
        return self.hosts[number]

    def join(self, member):
        offer = member.velum("cluster", "token")
        host = self.add(offer["node"])
        run(VELUM, "cluster", "join", "--config", host.config, "--token", offer["token"])
        return host.start()

    def live(self):
        return [host for host in self.hosts.values() if host.admin]

    def doors(self):
        """Where clients may try."""
        return [host.socket for host in self.hosts.values()]

    def status(self):
        """What any living node says of the cluster."""
        fault = None
        for host in self.live():
            try:
                return host.velum("cluster", "status", timeout=10)
            except (Failed, subprocess.TimeoutExpired) as error:
                fault = error
        raise Failed(f"no node answers: {fault}")

    def leader(self):
        return next((node["node"] for node in self.status()["nodes"] if node["role"] == "leader"), None)

    def volume(self):
        """What any living node shows of the volume."""
        return self.live()[0].velum("volume", "show", "demo")

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
                if found := so():
                    return found
            check(time.monotonic() < deadline, f"waited {seconds} s in vain for: {what}")
            time.sleep(0.1)
