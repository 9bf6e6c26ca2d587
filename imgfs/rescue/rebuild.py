"""A database that is lost or damaged is set aside, and a new one is made from what can be believed.

In this order: what can be read of the damaged file's tables that check out, the newest whole copy for what cannot,
files of the state directory. What was set aside is kept as `imgfs.db.damaged-<n>`. The new file is complete and durable
before it gets its name, so that a crash at any point leaves a start that does the same again.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from imgfs.content.opening import lost, size_of
from imgfs.database.database import Database, Reserve, read_only
from imgfs.database.failures import Damaged, is_full
from imgfs.database.format import ASIDE, FILE, is_outdated, prepare
from imgfs.database.frozen import FrozenDatabase
from imgfs.database.kept import Kept, Row
from imgfs.database.migrations import salvage_older, transaction
from imgfs.disk.calls import HOST
from imgfs.disk.durable import fsync_path, publish, temporary_name
from imgfs.errors import from_os
from imgfs.rescue.copy import Copy, newest

_SHARED = "-shm"
"""Derived from what is written ahead."""
_BESIDE = ("-wal", _SHARED, "-journal")
_log = logging.getLogger("imgfs.rescue")

Finder = Callable[[sqlite3.Connection, Path], int]
"""Puts into the tables of a room what the files of a state directory tell; returns how many rows. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the database consists of: the rooms' tables, what no file can rebuild, and who rebuilds the rest."""

    schemas: Sequence[str]
    kept: Sequence[Kept]
    finders: Sequence[Finder] = ()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How it went: why, where the old file is, the time of the copy (ISO 8601), and how many rows came from where."""

    reason: str
    aside: str | None
    copied: str | None
    rows: int
    salvaged: Sequence[str]
    found: int


def open_database(state: Path, tables: Tables) -> tuple[Database, Rebuilt | None]:
    """Open the database of a state directory, rebuilt first if it is lost or damaged.

    The caller holds the state's lock. Raises NoSpace, StorageFailed; then the old file is where it was.
    """
    reason = lost(state)
    if reason is None:
        try:
            return _sound(Database(state / FILE, tables.schemas), tables.kept), None
        except Damaged as error:
            reason = error.message
    rebuilt = rebuild(state, tables, reason)
    return Database(state / FILE, tables.schemas), rebuilt


def open_frozen(state: Path, tables: Tables) -> Database:
    """A copy of the database of a state directory that takes no change, without the rows that cannot be read.

    Raises Damaged, Foreign, StorageFailed.
    """
    database = FrozenDatabase(state / FILE, tables.schemas)
    for one in tables.kept:
        for reason in database.read_now(one.leave_out):
            _log.warning("left out", extra={"reason": reason})
    return database


def _sound(database: Database, kept: Sequence[Kept]) -> Database:
    """The database, if all rows can be read that no file can rebuild; else it is closed. Raises Damaged."""
    try:
        for one in kept:
            database.read_now(one.check_rows)
    except BaseException:
        database.close()
        raise
    return database


def rebuild(state: Path, tables: Tables, reason: str) -> Rebuilt:
    """Make the database anew, also on a full disk.

    Raises NoSpace, StorageFailed, and Foreign for a copy that a later imgfs wrote; then nothing has changed.
    """
    copy = newest(state, tables.kept)
    Reserve(state / FILE).release()
    temporary = state / temporary_name()
    try:
        rows, salvaged, found = _make(temporary, state, tables, copy)
        fsync_path(temporary)
        aside = set_aside(state)
        publish(temporary, state / FILE)
    except sqlite3.Error as error:
        raise from_os(OSError(errno.ENOSPC if is_full(error) else None, str(error)), str(temporary)) from None
    except OSError as error:
        raise from_os(error, str(error.filename or state)) from None
    finally:
        with suppress(OSError):
            HOST.unlink(temporary)
    rebuilt = Rebuilt(reason, aside and aside.name, _time(copy), rows, salvaged, found)
    _log.warning("the database was rebuilt", extra={**_told(rebuilt)})
    return rebuilt


def set_aside(state: Path) -> Path | None:
    """Give the database's file a second name, and what lies beside it its only one; None where nothing is in it.

    The old name stays until the new file takes it. What is written ahead goes at once: it must not meet the new file.
    """
    path = state / FILE
    aside = next(one for one in _aside_names(state) if not one.exists()) if size_of(path) else None
    if aside is not None:
        HOST.link(path, aside)
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        if aside is not None and suffix != _SHARED and size_of(beside):
            HOST.rename(beside, Path(f"{aside}{suffix}"))
        elif beside.exists():
            HOST.unlink(beside)
    fsync_path(state)
    return aside


def _make(path: Path, state: Path, tables: Tables, copy: Copy | None) -> tuple[int, list[str], int]:
    salvaged: list[str] = []
    total = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")  # all of it is synced at once, before anybody sees it
        prepare(db, tables.schemas)
        with transaction(db), _damaged(state / FILE) as (damaged, is_complete):
            for one in tables.kept:
                rows, is_whole = _salvage(damaged, one)
                one.restore(db, rows)
                if is_whole and is_complete:
                    salvaged.append(one.name)
                elif copy:  # behind what could be read, which is newer
                    one.restore(db, copy.rows[one.name])
                total += db.execute(f"SELECT count(*) FROM {one.name}").fetchone()[0]
            found = sum(finder(db, state) for finder in tables.finders)
    return total, salvaged, found


@contextmanager
def _damaged(path: Path) -> Generator[tuple[sqlite3.Connection | None, bool]]:
    """The damaged database in the current format, and whether no table is missing from it; None if it is unreadable."""
    with ExitStack() as opened:
        db, is_complete = None, False
        with suppress(sqlite3.Error):
            if size_of(path):
                db, is_complete = opened.enter_context(closing(read_only(path))), True
                if is_outdated(db):
                    db, is_complete = salvage_older(path)
                    opened.enter_context(closing(db))
        yield db, is_complete


def _salvage(damaged: sqlite3.Connection | None, kept: Kept) -> tuple[Sequence[Row], bool]:
    """The rows of a damaged database that can be read, if their tables are whole; and whether these are all."""
    if damaged is None:
        return (), False
    try:
        rows, wrong = kept.sift(damaged)
        return rows, not wrong
    except (sqlite3.Error, OverflowError):
        return (), False


def _aside_names(state: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield state / f"{ASIDE}{number}"


def _time(copy: Copy | None) -> str | None:
    return datetime.fromtimestamp(copy.written / 1e9, UTC).isoformat(timespec="seconds") if copy else None


def _told(rebuilt: Rebuilt) -> dict[str, object]:
    return {name: getattr(rebuilt, name) for name in ("reason", "aside", "copied", "rows", "salvaged", "found")}
