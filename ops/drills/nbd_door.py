#!/usr/bin/env python3
"""NBD clients people use, then a client that does everything wrong beside one that must not notice, against one node."""

import contextlib
import os
import pathlib
import re
import time
import urllib.request

from drill import Drill, Nbd, Node, check, run, say

HERE = pathlib.Path(__file__).resolve().parent


def open_files(node):
    """What the node holds open beside the files of its own folder, whose number follows from what was written: a journal
    file may be opened at any time."""
    held = []
    for number in os.listdir(f"/proc/{node.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            held.append(os.readlink(f"/proc/{node.process.pid}/fd/{number}"))
    return len([place for place in held if not place.startswith(f"{node.folder}/")])


def settled_files(node, most, seconds=20):
    """How many files the node holds once its connections are gone."""
    deadline = time.monotonic() + seconds
    while open_files(node) > most and time.monotonic() < deadline:
        time.sleep(0.2)
    return open_files(node)


def refused_inputs(node):
    with urllib.request.urlopen(f"http://{node.admin.removeprefix('http://')}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^velum_nbd_refused_inputs_total\{reason="(\w+)"\} (\d+)', text, re.MULTILINE)
    return {reason: int(count) for reason, count in found}


def main():
    with Drill("NBD clients, good and hostile", 1500) as drill:
        node = Node(drill, drill.folder / "data", "--size", "512MiB", "--nbd", "127.0.0.1:0").start()

        check(len(node.uris) == 2, f"served at {node.uris}, not at a socket and a port")
        for uri in node.uris:
            run(HERE / "nbd_clients.sh", uri, timeout=600)
            say(f"   {uri.split(':')[0]}: nbdinfo, nbdcopy, libnbd, qemu-img, qemu-io and fio did what they must")

        before = open_files(node)
        run(HERE / "nbd_hostile.py", node.socket, "demo", "--slow", "--rounds", "500", timeout=600)
        after = settled_files(node, before)
        check(after <= before, f"the node held {before} open files before, {after} after")
        counted = refused_inputs(node)
        never = [reason for reason in ("malformed", "too_long", "unknown", "unknown_export", "limit") if not counted.get(reason)]
        check(not never, f"the node counted no {never}: {counted}")
        say(f"   a hostile client harmed nobody; the node refused {counted}")

        idle = Nbd(node.socket)
        idle.write(0, bytes(4096))
        began = time.monotonic()
        node.stop()
        took = time.monotonic() - began
        check(took < 10, f"with an idle client the node took {took:.1f} s to stop")
        say(f"   with an idle client the node stopped in {took:.1f} s")


if __name__ == "__main__":
    main()
