"""What drills need of attachments: to attach, to connect under a handle, and to see that what must be refused is."""

import time

from drill import Failed, Nbd, check


def fails(what, *arguments, with_word=None, **named):
    """It must not work, and say why."""
    try:
        what(*arguments, **named)
    except (Failed, OSError) as fault:
        check(with_word is None or with_word in str(fault), f"it fails, but for another reason: {fault}")
        return
    raise Failed("what must be refused was done")


def owner(cluster):
    return cluster.wait(lambda: cluster.hosts[cluster.owner()], "an owner", 20)


def attach(cluster, *options):
    """The export name. Owners change, and a steal is asked of the owner."""
    return cluster.wait(lambda: owner(cluster).velum("volume", "attach", "demo", *options), "an attachment", 20)["export"]


def connect(host, export):
    """A connection at a node's door, which may hear of the attachment a moment later."""
    deadline = time.monotonic() + 10
    while True:
        try:
            nbd = Nbd(host.socket, export, seconds=10)
            nbd.socket.settimeout(30)
            return nbd
        except (Failed, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
