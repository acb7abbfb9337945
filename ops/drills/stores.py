"""Servers of each provider's protocol on this machine, for drills: each gives the environment that its clients need.

Programs come from registries, into the drill's folder or into target/tools; a server ends with its drill.
"""

import base64
import datetime
import hashlib
import hmac
import json
import pathlib
import sys
import time
import urllib.error
import urllib.request

from drill import ROOT, check, free_port, run

HERE = pathlib.Path(__file__).resolve().parent
AZURITE = ROOT / "target" / "tools" / "azurite"
AZURITE_VERSION = "3.37.0"
# The account every emulator of Azure's storage knows; its key is published and opens nothing else.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def start_s3(drill, kind="seaweedfs"):
    """A real S3 server; gives the environment of its clients and its address."""
    folder = drill.folder / "s3"
    run(HERE / "s3", "start", folder, kind, timeout=300)
    drill.mounts.append(lambda: run(HERE / "s3", "stop", folder))
    lines = [line.removeprefix("export ") for line in (folder / "env").read_text().splitlines()]
    env = dict(line.split("=", 1) for line in lines)
    return env, env["AWS_ENDPOINT"]


def wait_for(url, process, seconds=60):
    """Waits until a server answers, whatever it answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            check(process.poll() is None and time.monotonic() < deadline, f"nothing answers at {url}")
            time.sleep(0.2)


def start_azurite(drill):
    """Azurite with a container; gives the environment of its clients."""
    program = AZURITE / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        AZURITE.mkdir(parents=True, exist_ok=True)
        run("npm", "install", "--prefix", AZURITE, "--no-audit", "--no-fund", "--silent", f"azurite@{AZURITE_VERSION}",
            timeout=300)
    port = free_port()
    process = drill.spawn(program, "--blobHost", "127.0.0.1", "--blobPort", port, "-l", drill.folder / "azurite", "--silent",
                          "--skipApiVersionCheck", "--disableTelemetry", log=drill.folder / "azurite.log")
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    wait_for(endpoint, process)
    make_container(endpoint, "velum")
    return {"AZURE_STORAGE_ENDPOINT": endpoint, "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}


def make_container(endpoint, name):
    """Makes a container of blobs, signed as Azure wants it."""
    headers = {"x-ms-date": datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT"),
               "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{key}:{headers[key]}\n" for key in sorted(headers))
    signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    mac = hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
    headers["authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}"
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


def start_google(drill, s3):
    """Google's XML API on top of an S3 server; gives the environment of its clients."""
    port = free_port()
    process = drill.spawn(sys.executable, HERE / "gcs_shim.py", port, s3, log=drill.folder / "gcs_shim.log")
    wait_for(f"http://127.0.0.1:{port}/", process)
    account = {"gcs_base_url": f"http://127.0.0.1:{port}", "disable_oauth": True, "client_email": "", "private_key": "",
               "private_key_id": ""}
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_BASE_URL": f"http://127.0.0.1:{port}"}
