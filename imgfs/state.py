"""What can be said of a state directory as a whole: whether anything in it can be changed."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

_PROBE = ".tmp-probe-"
"""As all temporary names begin, so that the next start sweeps what a kill leaves."""


def is_read_only(directory: Path) -> bool:
    """Whether the filesystem of `directory` takes no change, found out by making one; blocks.

    Its flags do not tell: since Linux 6.14 an ext4 that met an error refuses changes and still calls itself writable.
    A directory that this user may not write, or a full disk, is not read-only.
    """
    probe = directory / f"{_PROBE}{uuid.uuid4().hex}"
    try:
        os.mkdir(probe, 0o700)
    except OSError as error:
        return error.errno == errno.EROFS
    with suppress(OSError):
        os.rmdir(probe)  # not through Disk: the probe has no content
    return False
