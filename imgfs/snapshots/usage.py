"""Disk usage of a snapshot's own changes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import from_os
from imgfs.snapshots.walk import walk

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Usage:
    """Allocated bytes and inodes, as du(1) counts them: holes are free, hard links count once."""

    bytes: int
    inodes: int


def measure(upper: Path) -> Usage:
    """Add up the usage of a directory of changes, itself included. Blocks. Raises NoSpace, StorageFailed.

    A live directory may change meanwhile; files that vanish are not counted.
    """
    total, inodes = 0, 0
    seen: set[tuple[int, int]] = set()
    try:
        for found in walk(upper):
            status = found.status
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * _BLOCK
            inodes += 1
    except OSError as error:
        raise from_os(error, str(upper)) from None
    return Usage(total, inodes)
