"""Uploads that have begun and are unfinished, so that the next push of the blob can continue.

A session's URL may work like a login. So no message contains it. On disk it is only in the database of the state
directory, which only the daemon's user can read, for an hour, and only if parts of a blob have arrived.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import trio

from imgfs.database.database import Database
from imgfs.errors import ImgfsError
from imgfs.oci.digest import Digest

SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    base TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    url TEXT NOT NULL,
    kept REAL NOT NULL,
    PRIMARY KEY (base, repository, digest)
) WITHOUT ROWID;
"""
"""If it is lost, interrupted uploads begin again. `kept` is wall-clock time."""

KEPT_MAX = 256
KEPT_SECONDS = 3600.0
"""Registries forget sessions after hours or days. Trying a forgotten session costs one request."""
_WHERE = "base = ? AND repository = ? AND digest = ?"
_log = logging.getLogger("imgfs.registry")


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """The target of an upload: server, repository and blob."""

    base: str
    repository: str
    digest: Digest

    @property
    def key(self) -> tuple[str, str, str]:
        """The row's key."""
        return self.base, self.repository, self.digest


class _Kept(NamedTuple):
    """The URL at which an upload continues, its expiry (trio's clock), and whether the database has it."""

    url: str
    until: float
    is_written: bool


class Sessions:
    """The URLs at which uploads continue; with a `database`, also after a restart."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database
        self._kept: OrderedDict[UploadTarget, _Kept] = OrderedDict()
        self._spare: dict[UploadTarget, tuple[str, float]] = {}
        self.undivided: set[str] = set()
        """Servers that do not accept blobs in parts."""

    async def get(self, target: UploadTarget) -> str | None:
        """Return the URL at which the interrupted upload of `target` continues, if there is one."""
        if target not in self._kept and (written := await self._read(target)):
            self._remember(target, written, is_written=True)
        kept = self._kept.get(target)
        return kept.url if kept is not None and trio.current_time() < kept.until else None

    async def keep(self, target: UploadTarget, url: str, *, lasting: bool) -> None:
        """Record that the upload of `target` continues at `url`; if `lasting`, durably.

        A failed write is logged; the URL is then kept in memory only.
        """
        before = self._kept.get(target)
        self._remember(target, url, is_written=lasting or (before is not None and before.is_written))
        if lasting:
            await self._write(target, url)

    async def drop(self, target: UploadTarget) -> None:
        """Record that the upload of `target` has ended."""
        kept = self._kept.pop(target, None)
        if kept is not None and kept.is_written:
            await self._write(target, None)

    def spare(self, target: UploadTarget, url: str) -> bool:
        """Keep an upload that a refused mount has opened, for `take`. Return whether it is kept."""
        now = trio.current_time()
        self._spare = {other: kept for other, kept in self._spare.items() if now < kept[1]}
        if target in self._spare or len(self._spare) >= KEPT_MAX:
            return False
        self._spare[target] = url, now + KEPT_SECONDS
        return True

    def take(self, target: UploadTarget) -> str:
        """Return the spare upload of `target`, which the caller then owns; "" if there is none."""
        url, until = self._spare.pop(target, ("", 0.0))
        return url if trio.current_time() < until else ""

    def _remember(self, target: UploadTarget, url: str, *, is_written: bool) -> None:
        self._kept[target] = _Kept(url, trio.current_time() + KEPT_SECONDS, is_written)
        self._kept.move_to_end(target)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)

    async def _read(self, target: UploadTarget) -> str | None:
        if self._database is None:
            return None
        try:
            row = await self._database.read(
                lambda db: db.execute(f"SELECT url, kept FROM uploads WHERE {_WHERE}", target.key).fetchone()
            )
        except ImgfsError as error:
            _log.warning("where an upload goes on cannot be read", extra={"error": error.message})
            return None
        return row[0] if row and 0 <= time.time() - row[1] < KEPT_SECONDS else None

    async def _write(self, target: UploadTarget, url: str | None) -> None:
        if self._database is None:
            return
        try:
            await self._database.write(lambda db: _replace(db, target, url), frees=url is None)
        except ImgfsError as error:
            _log.warning("where an upload goes on cannot be written down", extra={"error": error.message})


def _replace(db: sqlite3.Connection, target: UploadTarget, url: str | None) -> None:
    """Set the row of `target` to `url`, or remove it. Also remove old and excess rows."""
    now = time.time()
    db.execute("DELETE FROM uploads WHERE kept NOT BETWEEN ? AND ?", (now - KEPT_SECONDS, now))
    db.execute(f"DELETE FROM uploads WHERE {_WHERE}", target.key)
    if url is not None:
        kept = "SELECT kept FROM uploads ORDER BY kept DESC LIMIT 1 OFFSET ?"
        db.execute(f"DELETE FROM uploads WHERE kept <= ({kept})", (KEPT_MAX - 1,))
        db.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", (*target.key, url, now))
