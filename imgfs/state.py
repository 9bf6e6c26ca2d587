"""Find out whether a state directory is on a read-only filesystem."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

_PROBE = ".tmp-probe-"
"""Starts like all temporary names, so that the next start sweeps a probe that a killed process left."""


def is_read_only(directory: Path) -> bool:
    """Return whether the filesystem of `directory` refuses changes. Blocks: it creates and removes a directory.

    The mount flags are not enough: since Linux 6.14, ext4 refuses changes after an error but still reports itself as
    writable. Returns False if this user lacks write permission or the disk is full.
    """
    probe = directory / f"{_PROBE}{uuid.uuid4().hex}"
    try:
        os.mkdir(probe, 0o700)
    except OSError as error:
        return error.errno == errno.EROFS
    with suppress(OSError):
        os.rmdir(probe)  # not through Disk: the probe has no content
    return False
