"""The access clock: when a blob or a layer was used last, so that the longest unused can make room.

Exact in memory, coarse on disk: what a crash forgets is at most what was used since the last `save`, and then a thing
counts as used when it was stored. It never goes backwards, whatever the wall clock does: what is used later is later.
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
"""Ns: a use is written down again only when the one on disk is older than this."""


class AccessClock:
    """When things were used, by digest (of a blob) or diff ID (of a layer)."""

    def __init__(self, database: Database, now: Callable[[], int] = time.time_ns) -> None:
        """Load the table. `now` tells the time in ns since the epoch."""
        self._database = database
        self._now = now
        self._saved: dict[Digest, int] = dict(database.read_now(_select))
        self._used: dict[Digest, int] = {}
        self._latest = max(self._saved.values(), default=0)

    def touched(self, digest: Digest) -> None:
        """It is used now. Costs a write to a dictionary."""
        now = self._now()
        self._latest = now if now >= self._latest else self._latest + 1
        self._used[digest] = self._latest

    def last_used(self, digest: Digest) -> int | None:
        """When it was used last, ns since the epoch; None if nobody remembers."""
        return self._used.get(digest) or self._saved.get(digest)

    async def save(self) -> None:
        """Write down what changed enough to matter. Raises NoSpace, StorageFailed."""
        changed = [(d, used) for d, used in self._used.items() if used - self._saved.get(d, 0) >= COARSE]
        if changed:
            await self._database.write(lambda db: db.executemany("INSERT OR REPLACE INTO uses VALUES (?, ?)", changed))
            self._saved.update(changed)

    async def forget(self, digests: Iterable[Digest]) -> None:
        """These are no longer here."""
        gone = [digest for digest in digests if digest in self._used or digest in self._saved]
        for digest in gone:
            self._used.pop(digest, None)
        if kept := [(digest,) for digest in gone if self._saved.pop(digest, None) is not None]:
            await self._database.write(lambda db: db.executemany("DELETE FROM uses WHERE digest = ?", kept), frees=True)


def _select(db: sqlite3.Connection) -> list[tuple[Digest, int]]:
    return [(Digest(digest), used) for digest, used in db.execute("SELECT digest, used FROM uses")]
