"""The access clock: when each blob and layer was last used, so that the evictor removes the least recently used first.

Times are exact in memory and coarse on disk. A crash loses the uses since the last `save`; a thing without a time
counts as used when it was stored. The clock never goes backwards, even if the wall clock does: a later use has a later
time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable

from imgfs.database.database import Database
from imgfs.oci.digest import Digest

SCHEMA = """
CREATE TABLE IF NOT EXISTS uses (
    digest TEXT PRIMARY KEY,
    used INTEGER NOT NULL
) WITHOUT ROWID;
"""

COARSE = 3600 * 10**9
"""Ns. A use is saved only if the time on disk is older than this."""


class AccessClock:
    """The last uses, by digest (of a blob) or diff ID (of a layer)."""

    def __init__(self, database: Database, now: Callable[[], int] = time.time_ns) -> None:
        """Load the table. `now` returns the time in ns since the epoch."""
        self._database = database
        self._now = now
        self._saved: dict[Digest, int] = dict(database.read_now(_select))
        self._used: dict[Digest, int] = {}
        self._latest = max(self._saved.values(), default=0)

    def touched(self, digest: Digest) -> None:
        """Record a use now; costs one write to a dictionary."""
        now = self._now()
        self._latest = now if now >= self._latest else self._latest + 1
        self._used[digest] = self._latest

    def last_used(self, digest: Digest) -> int | None:
        """The last use in ns since the epoch; None if it is unknown."""
        return self._used.get(digest) or self._saved.get(digest)

    async def save(self) -> None:
        """Save the uses that changed by COARSE or more. Raises NoSpace, StorageFailed."""
        changed = [(d, used) for d, used in self._used.items() if used - self._saved.get(d, 0) >= COARSE]
        if changed:
            await self._database.write(lambda db: db.executemany("INSERT OR REPLACE INTO uses VALUES (?, ?)", changed))
            self._saved.update(changed)

    async def forget(self, digests: Iterable[Digest]) -> None:
        """Drop the uses of things that were removed. Raises StorageFailed."""
        gone = [digest for digest in digests if digest in self._used or digest in self._saved]
        for digest in gone:
            self._used.pop(digest, None)
        if kept := [(digest,) for digest in gone if self._saved.pop(digest, None) is not None]:
            await self._database.write(lambda db: db.executemany("DELETE FROM uses WHERE digest = ?", kept), frees=True)


def _select(db: sqlite3.Connection) -> list[tuple[Digest, int]]:
    return [(Digest(digest), used) for digest, used in db.execute("SELECT digest, used FROM uses")]
