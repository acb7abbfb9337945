#!/usr/bin/env python3
"""One cloud is away for the whole of a fio verify run: no guest error; it returns and is brought up to date."""

import json
import os
import shutil
import time

from drill import VELUM, Drill, Node, check, run, say, tree


def leave(folder):
    """The cloud's directory is gone and nothing can be stored where it was."""
    away = folder.with_suffix(".away")
    folder.rename(away)
    folder.write_bytes(b"no directory")
    return away


def come_back(folder, away):
    folder.unlink()
    away.rename(folder)


def fio(drill, uri, name, rw, bs, size):
    """A verified run; gives fio's own account."""
    result = run("fio", f"--name={name}", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={bs}", "--iodepth=16",
                 f"--size={size}", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_backlog=2048",
                 "--fsync=256", "--output-format=json", timeout=300, cwd=drill.folder)
    job = json.loads(result[result.index("{"):])["jobs"][0]
    check(job["error"] == 0, f"fio reports error {job['error']}")
    return job


with Drill("one cloud away during a fio verify run", 600) as drill:
    data = drill.folder / "data"
    node = Node(drill, data, "--size", "512MiB").start()
    node.flush()
    node.wait_until_complete()
    cloud = data / "clouds" / "c"
    away = leave(cloud)
    for name, rw, bs, size in (("random", "randwrite", "4k-64k", "256m"), ("straight", "write", "1m", "256m")):
        job = fio(drill, node.uri(), name, rw, bs, size)
        say(f"   cloud c away, fio {rw} {bs}, {size} with crc32c verify: 0 errors, {job['write']['iops']:.0f} writes/s, "
            f"{job['read']['iops']:.0f} verify reads/s")
    flushed = node.flush()
    shown = node.velum("volume", "show", "demo")
    lag = {entry["cloud"]: entry["lag_records"] for entry in shown["clouds"]}
    check(lag["c"] > 0 and lag["a"] + lag["b"] == 0, f"lag while c is away: {lag}")
    states = {entry["name"]: entry["state"] for entry in node.velum("cloud", "list")}
    check(states == {"a": "up", "b": "up", "c": "away"}, f"what `cloud list` says of the clouds: {states}")
    say(f"   `volume flush` returned in {flushed:.1f} s with c away; c lacks {lag['c']} records and says so")
    come_back(cloud, away)
    took = node.wait_until_complete(seconds=180)
    say(f"   c returned; its cursor reached the head {took:.1f} s later")
    node.stop()
    trees = {name: tree(data / "clouds" / name) for name in "abc"}
    check(len(trees["a"]) > 10, "the clouds hold objects")
    for name in "bc":
        only = sorted(set(trees["a"].items()) ^ set(trees[name].items()))
        check(not only, f"a and {name} differ in {len(only)} objects, the first: {only[:2]}")
    say(f"   all three clouds hold the same {len(trees['a'])} objects, byte for byte")
    given = [word for name in "abc" for word in ("--cloud", f"{name}=file://{data}/clouds/{name}")]
    report = json.loads(run(VELUM, "--output", "json", "recover", *given, "--keyfile", data / "root.key", "--dir",
                            drill.folder / "new", "--verify", "full"))
    faults = {cloud["name"]: (cloud["corrupt"], cloud["missing"]) for cloud in report["clouds"]}
    check(all(faults[name] == ({}, {}) for name in "abc"), f"faults in the clouds: {faults}")
    counted = {cloud["name"]: sum(cloud["authentic"].values()) for cloud in report["clouds"]}
    say(f"   every object opened and verified in each: {counted} authentic, none corrupt, none missing")
