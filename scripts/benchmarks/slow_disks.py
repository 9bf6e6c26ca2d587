"""A disk with the flush time of a real disk: an ext4 on a loop device, over a file with a slow fsync.

Owns making the disk, verifying its flush time, and removing it. flusher.py serves the file.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .bench import timed
from .disks import SHM, Rooms, unmount_below
from .flusher import FLUSHES, NAME
from .processes import Failed, run, start, stop, wait_until

_SIZE = 1 << 30
_TRIALS = 5


class SlowDisk:
    """Rooms on a slow disk, and the number of its flushes."""

    def __init__(self, file: Path, mounted: Path) -> None:
        self.rooms = Rooms(mounted)
        self._file = file

    def flushes(self) -> int:
        """Return the number of flushes so far."""
        return int(os.getxattr(self._file, FLUSHES))


@contextmanager
def slow_disk(flush: int) -> Generator[SlowDisk]:
    """Yield rooms on a fresh ext4 whose disk needs `flush` milliseconds for a flush.

    Raises Failed if a check shows otherwise.
    """
    top = Path(tempfile.mkdtemp(prefix="ib-"))
    backing, device, mounted = SHM / f"{top.name}.slow", top / "device", top / "disk"
    child = None
    try:
        with backing.open("wb") as file:
            file.truncate(_SIZE)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", backing)
        device.mkdir()
        mounted.mkdir()
        log = top / "flusher.log"
        child = start(sys.executable, "-m", "benchmarks.flusher", device, backing, "--flush", f"{flush}", log=log)
        wait_until((device / NAME).exists, "the flusher", child, log)
        run("mount", "-o", "loop", device / NAME, mounted)
        _prove(mounted / "trial", flush / 1000)
        yield SlowDisk(device / NAME, mounted)
    finally:
        unmount_below(top)
        if child is not None:
            stop(child)
        shutil.rmtree(top, ignore_errors=True)
        backing.unlink(missing_ok=True)


def _prove(trial: Path, flush: float) -> None:
    """Check that a sync waits for the disk, and that an unsynced write does not."""
    written = flush
    for _ in range(_TRIALS):
        with trial.open("wb", buffering=0) as file:
            written, _ = timed(lambda: file.write(bytes(4096)))
            synced, _ = timed(lambda: os.fsync(file.fileno()))
        trial.unlink()
        if synced < flush:
            raise Failed(f"the slow disk: an fsync took {synced * 1e3:.2f} ms, its flush alone takes {flush * 1e3:.0f}")
        if written < flush:
            return
    raise Failed(f"the slow disk: a write took {written * 1e3:.2f} ms, as if it were synced")
