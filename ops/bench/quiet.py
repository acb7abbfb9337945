"""Waits until servers have nothing left to do, so that no work is measured beside what an earlier one left."""

import os
import pathlib
import time

from drill import check, run, say

CALM_SHARE = 0.03  # Of one core, for each server: nodes among others never rest wholly.
CALM_SECONDS = 1
WAIT_MAX = 30
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def await_calm(pids):
    """Dirty pages are written back, and the processes have taken hardly any time for a while: nothing is compacted any more."""
    run("sync", timeout=WAIT_MAX)
    pids, deadline = list(pids), time.monotonic() + WAIT_MAX
    while True:
        before = cpu_seconds(pids)
        time.sleep(CALM_SECONDS)
        share = (cpu_seconds(pids) - before) / CALM_SECONDS
        if share <= CALM_SHARE * len(pids):
            return
        if time.monotonic() > deadline:
            say(f"   the servers took {share:.0%} of a core {WAIT_MAX} s after the last work; measured beside that")
            return


def cpu_seconds(pids):
    """Time that processes had on a core."""
    def ticks(pid):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])
    check(pids, "no server to wait for")
    return sum(map(ticks, pids)) / TICKS_PER_SECOND
