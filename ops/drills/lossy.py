"""A disk of its own for a node, for drills that cut the power: what was written and not synced is gone afterwards.

An ext4 on a loop device is shut down as its driver offers it for such tests: at once, with nothing more written, not even its
log. The machine's page cache of it is lost then. Parts of what is in there are pushed to the disk at any time, so that what is
left of a file is not one moment's.
"""

import contextlib
import fcntl
import os
import struct

from drill import BLOCK, MIB, check, run

SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2


class Disk:
    """Mounted at `point`."""

    def __init__(self, drill, folder, mib=640):
        self.point, self.image = folder / "disk", folder / "image"
        self.point.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(mib * MIB)
        run("mkfs.ext4", "-q", "-F", "-b", BLOCK, self.image)
        self.mount()
        drill.mounts.append(lambda: run("umount", "--lazy", self.point))

    def prove(self):
        """Fails unless power cuts are what they are meant to be here."""
        for name in ("synced", "unsynced"):
            with open(self.point / name, "wb") as file:
                file.write(name.encode() * BLOCK)
                file.flush()
                if name == "synced":
                    os.fsync(file.fileno())
        self.cut()
        self.restore()
        found = {path.name: path.stat().st_size for path in self.point.iterdir() if path.is_file()}
        check(found.get("synced") == len("synced") * BLOCK, f"what was synced is gone after a power cut: {found}")
        check(not found.get("unsynced"), f"what was not synced is there after a power cut: {found}")
        (self.point / "synced").unlink()

    def mount(self):
        run("mount", "-o", "loop", self.image, self.point)

    def push(self, chance):
        """Has the machine write some pages of files to the disk."""
        for path in self.point.rglob("*"):
            with contextlib.suppress(OSError):
                file = os.open(path, os.O_RDONLY)
                for first in range(chance.randrange(8), os.fstat(file).st_size // BLOCK, 8):
                    os.posix_fadvise(file, first * BLOCK, chance.randrange(1, 5) * BLOCK, os.POSIX_FADV_DONTNEED)
                os.close(file)

    def cut(self):
        """From now on nothing is written, and whoever tries is told that it fails."""
        point = os.open(self.point, os.O_RDONLY)
        fcntl.ioctl(point, SHUTDOWN, struct.pack("I", WITHOUT_LOG))
        os.close(point)

    def restore(self):
        """The power is back."""
        run("umount", self.point)
        self.mount()
