"""A disk whose power can be cut: a filesystem in a file whose journal is dropped at once.

What reached the journal on disk survives. The journal in memory and all unwritten pages are lost.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

from tests.mount.scene import until
from tests.support.programs import program, run

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_SIZE = 400 << 20
"""xfs needs at least 300 MB."""


class Disk:
    """A loop-mounted filesystem of a type that mkfs supports."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.at = directory / "disk"
        self._picture = directory / f"picture.{kind}"
        self.at.mkdir()
        with self._picture.open("wb") as file:
            file.truncate(_SIZE)
        run(f"mkfs.{kind}", "-q", self._picture)

    def mount(self) -> None:
        """Mount as after a boot, with a replay of the journal."""
        run("mount", "-o", "loop", self._picture, self.at)

    def unmount(self) -> None:
        """Unmount. No process may have a file open; the kernel releases a dead daemon's mounts a little later.

        As long as an overlay uses the filesystem, another mount of the file would be the same dead filesystem.
        """
        until(self._try_unmount)

    def cut_power(self) -> None:
        """From now on nothing reaches the file, and every call fails."""
        descriptor = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def _try_unmount(self) -> bool:
        subprocess.run([program("umount"), self.at], capture_output=True, check=False)
        return not os.path.ismount(self.at) and not run("losetup", "-j", self._picture)
