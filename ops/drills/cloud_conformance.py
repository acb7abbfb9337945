#!/usr/bin/env python3
"""Clouds of each provider do what a node rests on: the suite that local directories and simulated clouds pass too, against
SeaweedFS as s3://, Azurite as az://, and Google's XML API on top of SeaweedFS as gs://.

usage: cloud_conformance.py [seaweedfs|moto]      the S3 server; needs python3 with venv, curl, npm, cargo
"""

import os
import sys
import time

from drill import ROOT, Drill, run, say
from stores import start_azurite, start_google, start_s3


def main():
    kind = sys.argv[1] if len(sys.argv) > 1 else "seaweedfs"
    with Drill("the cloud conformance suite against servers of each provider's protocol", 900) as drill:
        # Of the whole workspace, as its tests are: with the features of one package alone all would be compiled anew.
        build = ("cargo", "build", "--quiet", "--locked", "--workspace", "--example", "cloud_conformance")
        run(*build, timeout=600, cwd=ROOT)
        suite = ROOT / "target" / "debug" / "examples" / "cloud_conformance"
        s3, address = start_s3(drill, kind)
        clouds = [("s3://velum/conformance-drill", s3), ("az://velum/conformance-drill", start_azurite(drill)),
                  ("gs://google/conformance-drill", start_google(drill, address))]
        for url, env in clouds:
            began = time.monotonic()
            run(suite, url, env={**os.environ, **env}, timeout=200)
            say(f"   {url.split(':')[0]}: passes in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
