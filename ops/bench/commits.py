#!/usr/bin/env python3
"""What three nodes agree on in a second beside three members of etcd: a table of medians, ratios and ranges.

usage: commits.py [--pairs 7] [--seconds 5] [--work NAME,...]      VELUM names another binary

Each node and each member is a process of its own, all on the loopback, their directories on the same disk, both with the syncs
that they do by themselves. Clients (ops/examples/bench_commits.rs) ask the leader, each on a connection that it keeps: a node over
its admin door to dismiss a node that never was, a command that is agreed, synced and applied like any other; etcd to put 16 bytes,
over gRPC. The node's raft log must have grown by as many entries as were answered. Rounds, ratios and ranges are those of
side_by_side.py. The example lies beside the binary: cargo build --release -p velum-ops --examples. Needs etcd.
"""

import json
import os
import pathlib
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "drills"))
from cluster import Cluster  # noqa: E402
from clouds import by_turns, row  # noqa: E402
from drill import MIB, VELUM, Drill, check, free_port, run, say  # noqa: E402
from side_by_side import parse  # noqa: E402

CLIENTS = pathlib.Path(VELUM).parent / "examples" / "bench_commits"
MEMBERS = 3

# How many clients ask at once.
WORKS = {"1 client": 1, "8 clients": 8, "32 clients": 32}


class Velum:
    """Three nodes."""

    def __init__(self, drill):
        self.cluster = Cluster(drill, 64 * MIB, nodes=MEMBERS)

    def leader(self):
        [leader] = [node["node"] for node in self.cluster.status()["nodes"] if node["role"] == "leader"]
        return self.cluster.hosts[leader]

    def commits(self, clients, seconds):
        leader = self.leader()
        before = self.agreed(leader)
        report = load("velum", leader.admin.removeprefix("http://"), clients, seconds)
        grown = self.agreed(leader) - before
        check(grown >= report["commits"], f"{report['commits']} commits were answered, raft's log grew by {grown}")
        return report

    @staticmethod
    def agreed(host):
        with urllib.request.urlopen(f"{host.admin}/v1/raft", timeout=10) as answer:
            return json.load(answer)["applied"]


class Etcd:
    """Three members of etcd with what it does by itself."""

    def __init__(self, drill):
        ports = [(free_port(), free_port()) for _ in range(MEMBERS)]
        together = ",".join(f"m{number}=http://127.0.0.1:{peers}" for number, (_, peers) in enumerate(ports))
        self.members = [f"127.0.0.1:{port}" for port, _ in ports]
        for number, (port, peers) in enumerate(ports):
            door, link = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
            drill.spawn(
                "etcd", "--name", f"m{number}", "--data-dir", drill.folder / f"etcd-{number}", "--log-level", "error",
                "--listen-client-urls", door, "--advertise-client-urls", door, "--listen-peer-urls", link,
                "--initial-advertise-peer-urls", link, "--initial-cluster", together, "--initial-cluster-state", "new",
                log=drill.folder / f"etcd-{number}.log")
        self.leader()

    def leader(self, seconds=30):
        """The member that leads, as soon as all are there."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = [member for member in self.members if self.leads(member)]
                if len(found) == 1:
                    return found[0]
            except OSError:
                pass
            check(time.monotonic() < deadline, f"etcd has no leader after {seconds} s")
            time.sleep(0.1)

    @staticmethod
    def leads(member):
        asked = urllib.request.Request(f"http://{member}/v3/maintenance/status", data=b"{}", method="POST")
        with urllib.request.urlopen(asked, timeout=10) as answer:
            said = json.load(answer)
        return said.get("leader", "0") == said["header"]["member_id"]

    def commits(self, clients, seconds):
        return load("etcd", self.leader(), clients, seconds)


def load(side, address, clients, seconds):
    """Clients at work; gives their report."""
    return json.loads(run(CLIENTS, side, address, clients, seconds, timeout=seconds + 60))


def measure(sides, name, clients, arguments):
    """Two lines of the table: how many commits, and how long one takes. Gives the most of a core that the clients took."""
    reports = by_turns(arguments.pairs, *[lambda side=side: side.commits(clients, arguments.seconds) for side in sides])
    rates, medians = ([[of(report) for report in side] for side in reports] for of in (
        lambda report: report["commits"] / report["seconds"], lambda report: report["median_us"] / 1000))
    row(f"commits, {name}", "/s", *rates, "etcd")
    row(f"time of a commit, median, {name}", " ms", *medians, "etcd")
    return max(report["cpu_seconds"] / report["seconds"] for side in reports for report in side)


def main():
    arguments, works = parse(__doc__, WORKS)
    if not CLIENTS.exists():
        raise SystemExit(f"{CLIENTS} is missing: cargo build --release -p velum-ops --examples")
    with Drill("what three nodes agree on beside etcd", 3600) as drill:
        sides = Velum(drill), Etcd(drill)
        for side in sides:
            side.commits(8, 1)
        say("| work | velum: median (range) | beside | ratio | range |\n|---|---|---|---|---|")
        cores = [measure(sides, name, clients, arguments) for name, clients in works.items()]
        say(f"   {run('etcd', '--version').splitlines()[0]}; the clients took {max(cores):.2f} of a core at most")
        say(f"   load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
