#!/usr/bin/env python3
"""A volume over three providers, s3://, az:// and gs://: written, flushed, and recovered without the node and one of them."""

import json
import os
import random
import shutil
import time

from drill import MIB, VELUM, Drill, Node, check, file_hash, run, say
from stores import start_azurite, start_google, start_s3

SIZE = 256 * MIB

with Drill("a volume over S3, Azure's protocol and Google's", 600) as drill:
    credentials, address = start_s3(drill)
    credentials |= start_azurite(drill) | start_google(drill, address)
    data, image = drill.folder / "data", drill.folder / "image"
    clouds = {"a": "s3://velum/a", "b": "az://velum/b", "c": "gs://google/c"}
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
    check(file_hash(drill.folder / "back") == file_hash(image), "what comes back is not what went in")
    say(f"   node and cloud c gone, recovered from S3 and Azure: byte-identical; {report['assumption']}")
    node.stop()
