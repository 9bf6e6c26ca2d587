"""When the copy is written: soon after a change, each hour if it was damaged or lost, and at the end of the daemon."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.database.database import Database
from imgfs.database.failures import Damaged
from imgfs.database.kept import Kept
from imgfs.errors import ImgfsError, from_os
from imgfs.rescue.copy import Copy, rows_of, save

DELAY = 60.0
"""Seconds from a change to its copy: so much may be lost with the database, and so seldom is all of it written."""
HOUR = 3600.0
_log = logging.getLogger("imgfs.rescue")


class Keeper:
    """Keeps the copy of one open database."""

    def __init__(self, state: Path, database: Database, kept: Sequence[Kept]) -> None:
        self._state = state
        self._database = database
        self._kept = kept
        self._saving = trio.Lock()
        self._saved = -1
        """The version of the database that was copied last; none yet."""

    async def save(self) -> bool:
        """Write a copy unless nothing changed; tells whether it did. On return it survives a power cut.

        Raises NoSpace, StorageFailed; Damaged where the database does not check out, then the last copy stays.
        """
        async with self._saving:
            version = self._database.version
            rows = await self._database.read(lambda db: rows_of(db, self._kept))
            try:
                done = await run_disk(save, self._state, Copy(time.time_ns(), rows))
            except OSError as error:
                raise from_os(error, str(self._state)) from None
            self._saved = version
            return done

    async def save_logged(self) -> None:
        """As `save`; what fails is logged."""
        try:
            await self.save()
        except Damaged as error:
            _log.error("the database is damaged; no copy is made of it", extra={"reason": error.message})
        except ImgfsError as error:
            _log.warning("no copy of the database was made", extra={"reason": error.message})

    async def watch(self, delay: float = DELAY) -> None:
        """For ever: write a copy `delay` seconds after a change, and look each hour whether it is still whole.

        Soon after the start too: an older imgfs, or a kill, may have left none. What failed is tried again.
        """
        while True:
            with trio.move_on_after(HOUR):
                await self._database.wait_changed(self._saved)
                await trio.sleep(delay)
            await self.save_logged()
