"""When the row copy is written: soon after a change, hourly if the file was damaged or lost, and at the daemon's
end."""

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
from imgfs.plugins.contract import Kind
from imgfs.rescue.row_copy import RowCopy, rows_of, save

DELAY = 60.0
"""Seconds from a change to its copy: at most these changes are lost with the database, and a copy writes all rows."""
HOUR = 3600.0
_log = logging.getLogger("imgfs.rescue")


class Keeper:
    """Keeps the row copy of one open database."""

    def __init__(self, state: Path, database: Database, kept: Sequence[Kept]) -> None:
        self._state = state
        self._database = database
        self._kept = kept
        self._saving = trio.Lock()
        self._saved = -1
        """The version of the database that was copied last; -1 before the first copy."""

    async def save(self) -> bool:
        """Write a copy unless nothing changed; returns whether it did. Durable on return.

        Raises NoSpace and StorageFailed; Damaged if the database is damaged, and then the last copy stays.
        """
        async with self._saving:
            version = self._database.version
            rows = await self._database.read(lambda db: rows_of(db, self._kept))
            try:
                done = await run_disk(save, self._state, RowCopy(time.time_ns(), rows))
            except OSError as error:
                raise from_os(error, str(self._state)) from None
            self._saved = version
            return done

    async def save_logged(self) -> None:
        """Write a copy like `save`, and log a failure."""
        try:
            await self.save()
        except Damaged as error:
            _log.error("the database is damaged; no copy is made of it", extra={"reason": error.message})
        except ImgfsError as error:
            _log.warning("no copy of the database was made", extra={"reason": error.message})

    async def watch(self, delay: float = DELAY) -> None:
        """Run for ever: write a copy `delay` seconds after a change, and check hourly that the file is whole.

        The first copy is written soon after the start, because an older imgfs or a kill may have left none. A failed
        copy is retried.
        """
        while True:
            with trio.move_on_after(HOUR):
                await self._database.wait_changed(self._saved)
                await trio.sleep(delay)
            await self.save_logged()


KEEPER = Kind("keeper", Keeper)
"""The kind of what keeps the row copy; the daemon passes it to plugins."""
