"""The record of an unfinished write: the file `meta`, replaced as a whole and durably."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import trio

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.meta import Meta, write_again
from imgfs.disk.calls import Disk
from imgfs.errors import from_os


class Record:
    """What the disk says of an ingest. Who changes it holds `lock` from looking at `meta` until it is written."""

    def __init__(self, disk: Disk, path: Path, meta: Meta) -> None:
        self.path = path
        self.meta = meta
        self.lock = trio.Lock()
        self.is_rooted = meta.durable > 0
        """Whether the name of the ingest's directory is durable."""
        self._is_on_disk = True
        """Whether `meta` is what the disk has: not where writing it anew failed, for that may be there all the same."""
        self._disk = disk

    @property
    def is_durable(self) -> bool:
        """Whether the disk says what `meta` does, also after a power cut."""
        return self.is_rooted and self._is_on_disk

    async def write(self, meta: Meta) -> None:
        """Replace it, durably, with the time of now. Raises NoSpace, StorageFailed; then either may be on disk."""
        meta = msgspec.structs.replace(meta, updated=time.time_ns())
        try:
            await run_disk(write_again, self._disk, self.path, meta)
            if not self.is_rooted:
                await run_disk(self._disk.fsync_directory, self.path.parent.parent)
                self.is_rooted = True
        except OSError as error:
            self._is_on_disk = False
            raise from_os(error, self.meta.subject) from None
        self.meta, self._is_on_disk = meta, True
