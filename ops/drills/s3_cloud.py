#!/usr/bin/env python3
"""Clouds that are buckets of a real S3 server: written, flushed, and recovered from without the node."""

import json
import os
import pathlib
import random
import shutil
import time

from drill import MIB, VELUM, Drill, Node, check, file_hash, run, say

HERE = pathlib.Path(__file__).resolve().parent
SIZE = 256 * MIB

with Drill("two clouds on a real S3 server, one on disk", 600) as drill:
    server = drill.folder / "s3"
    run(HERE / "s3", "start", server, timeout=300)
    drill.mounts.append(lambda: run(HERE / "s3", "stop", server))
    lines = [line.removeprefix("export ") for line in (server / "env").read_text().splitlines()]
    credentials = dict(line.split("=", 1) for line in lines)
    data, image = drill.folder / "data", drill.folder / "image"
    clouds = {"a": "s3://velum/a", "b": "s3://velum/b", "c": f"file://{drill.folder}/c"}
    given = [word for name, url in clouds.items() for word in ("--cloud", f"{name}={url}")]
    node = Node(drill, data, "--size", f"{SIZE}B", *given, env=credentials).start()
    image.write_bytes(random.randbytes(96 * MIB) + bytes(SIZE - 96 * MIB))
    began = time.monotonic()
    run("nbdcopy", "--destination-is-zero", image, node.uri())
    flushed = node.flush()
    caught_up = node.wait_until_complete()
    say(f"   96 MiB written and cloud-durable in {time.monotonic() - began:.1f} s (flush {flushed:.1f} s, all three "
        f"complete {caught_up:.1f} s later)")
    checks = node.velum("cloud", "check")
    check(all(cloud["ok"] for cloud in checks), f"`cloud check`: {checks}")
    node.kill()
    shutil.rmtree(data / "node-1")
    given = [word for name in "ab" for word in ("--cloud", f"{name}={clouds[name]}")]
    report = json.loads(run(VELUM, "--output", "json", "recover", *given, "--accept-missing", "c", "--keyfile",
                            data / "root.key", "--dir", drill.folder / "new", env={**os.environ, **credentials}))
    node = Node(drill, drill.folder / "new", env=credentials)
    node.settle()
    node.start()
    run("nbdcopy", node.uri(), drill.folder / "back")
    check(file_hash(drill.folder / "back") == file_hash(image), "what comes back from S3 is not what went in")
    say(f"   node and cloud c gone, recovered from the two buckets: byte-identical; {report['assumption']}")
    node.stop()
