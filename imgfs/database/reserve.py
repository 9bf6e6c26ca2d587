"""Room on the disk that is kept for the start and for what makes room."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

RESERVE = 1 << 20
"""Bytes on disk beside the database for the start and for what makes room: both have to work when the disk is full."""


class Reserve:
    """A file beside a database that is in the way of others until its room is needed."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}.reserve")

    def release(self) -> None:
        """Give the room up."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)  # not through Disk: it has no content

    def fill(self) -> None:
        """Take the room unless it is held; where there is none, the next one to come here tries again."""
        if self._path.exists():
            return
        try:
            with self._path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError:
            self.release()
