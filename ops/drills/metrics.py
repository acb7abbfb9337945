#!/usr/bin/env python3
"""A real Prometheus scrapes a node under load; every query of the dashboard returns data, and the alert rules pass."""

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request

from drill import MIB, ROOT, Drill, Nbd, Node, check, free_port, run, say

DASHBOARD, RULES = ROOT / "grafana" / "velum.json", ROOT / "ops" / "prometheus"
LOAD_SECONDS = 40


def ask(base, path, **query):
    url = f"{base}{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def start_prometheus(drill, target):
    port = free_port()
    config = drill.folder / "prometheus.yml"
    config.write_text(f"""global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{RULES}/alerts.yml]
scrape_configs:
  - job_name: velum
    static_configs: [{{targets: ["{target}"]}}]
""")
    process = drill.spawn("prometheus", f"--config.file={config}", f"--storage.tsdb.path={drill.folder}/tsdb",
                          f"--web.listen-address=127.0.0.1:{port}", log=drill.folder / "prometheus.log")
    base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
    while True:
        check(process.poll() is None and time.monotonic() < deadline, "prometheus does not start")
        try:
            urllib.request.urlopen(f"{base}/-/ready", timeout=2)
            return base
        except OSError:
            time.sleep(0.2)


def load(node, seconds):
    """A little of everything a guest can ask for."""
    nbd, end, at = Nbd(node.socket), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(16):
            nbd.write(at % (200 * MIB), bytes([at % 251 + 1]) * 65536)
            at += 65536
        nbd.read((at * 7) % (200 * MIB) // 4096 * 4096, 65536)
        nbd.read(900 * MIB, 4096)
        nbd.flush()
        nbd.send(Nbd.TRIM, 1, at % (100 * MIB) // 4096 * 4096, 65536)
        nbd.reply()
        time.sleep(0.05)
    nbd.close()


def drawn_panels(dashboard):
    """All panels that draw something, those in folded rows too; each must ask for something."""
    every = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]
    panels = [panel for panel in every if panel["type"] not in ("row", "text")]
    silent = [panel["title"] for panel in panels if not any(query.get("expr") for query in panel.get("targets", []))]
    check(panels and not silent, f"panels without a query: {silent}")
    return panels


def has_data(result):
    return any(math.isfinite(float(value)) for series in result for _, value in series["values"])


with Drill("dashboard and alerts against a real Prometheus", 300) as drill:
    for command in (("check", "config", RULES / "prometheus.yml"), ("test", "rules", RULES / "tests.yml")):
        run("promtool", *command)
    say("   promtool: scrape config and alert rules are well-formed, the rules' tests pass")
    node = Node(drill, drill.folder / "data").start()
    target = node.admin.removeprefix("http://")
    exposition = urllib.request.urlopen(f"{node.admin}/metrics").read().decode()
    base = start_prometheus(drill, target)
    began = time.time()
    load(node, LOAD_SECONDS / 2)
    node.flush()
    load(node, LOAD_SECONDS / 2)
    time.sleep(3)
    panels = drawn_panels(json.loads(DASHBOARD.read_text()))
    queries, without = 0, []
    for panel in panels:
        for query in panel["targets"]:
            text = query["expr"].replace("$__rate_interval", "15s").replace("$instance", ".*")
            answer = ask(base, "/api/v1/query_range", query=text, start=began, end=time.time(), step=1)
            check(answer["status"] == "success", f"panel `{panel['title']}`: {answer.get('error')}: {text}")
            queries += 1
            if not has_data(answer["data"]["result"]):
                without.append(f"{panel['title']}: {text}")
    check(not without, "queries without data:\n     " + "\n     ".join(without))
    say(f"   {len(panels)} panels, {queries} queries: each returns data ({len(exposition.splitlines())} lines of metrics)")
    slowest = 0.0
    for _ in range(20):
        started = time.monotonic()
        urllib.request.urlopen(f"{node.admin}/metrics").read()
        slowest = max(slowest, time.monotonic() - started)
    firing = [alert["labels"]["alertname"] for alert in ask(base, "/api/v1/alerts")["data"]["alerts"] if alert["state"] == "firing"]
    check(not firing, f"alerts fire on a healthy node: {firing}")
    check(slowest < 1, f"a scrape took {slowest:.2f} s")
    say(f"   no alert fires on a healthy node; slowest of 20 scrapes {slowest * 1000:.0f} ms")
    node.kill()
    deadline = time.monotonic() + 10
    while ask(base, "/api/v1/query", query='up{job="velum"}')["data"]["result"][0]["value"][1] != "0":
        check(time.monotonic() < deadline, "Prometheus does not notice that the node is gone")
        time.sleep(0.5)
    say("   the node killed: `up` turns 0, which VelumNodeDown watches")
