"""Rebuilding a lost or damaged database: the old file is set aside, and a new one is made from trusted sources.

The sources, in order: the readable rows of sound tables in the damaged file; the newest sound row copy, for the tables
that are not readable; files of the state directory. The old file stays as `imgfs.db.damaged-<n>`. The new file is
complete and durable before it gets its name, so after a crash at any point the next start does the same again.
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
from imgfs.plugins.contract import Kind
from imgfs.rescue.row_copy import RowCopy, newest

_SHARED = "-shm"
"""SQLite derives this file from the write-ahead log."""
_BESIDE = ("-wal", _SHARED, "-journal")
_log = logging.getLogger("imgfs.rescue")

Finder = Callable[[sqlite3.Connection, Path], int]
"""Fills a room's tables from the files of a state directory; returns the number of rows. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of the database: their schemas, the rows that no file can rebuild, and the finders of the other
    rows."""

    schemas: Sequence[str]
    kept: Sequence[Kept]
    finders: Sequence[Finder] = ()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The result of a rebuild: its reason, the old file, the time of the copy (ISO 8601), and the rows of each
    source."""

    reason: str
    aside: str | None
    copied: str | None
    rows: int
    salvaged: Sequence[str]
    found: int


TABLES = Kind("tables", Tables)
"""The kind of the database's tables; the daemon passes them to plugins."""


def open_database(state: Path, tables: Tables) -> tuple[Database, Rebuilt | None]:
    """Open the database of a state directory; rebuild it first if it is lost or damaged.

    The caller must hold the state directory's lock. Raises NoSpace, StorageFailed, and Foreign for a database or a copy
    of a later imgfs; then the old file is unchanged.
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
    """Open an in-memory copy for a read-only state directory, without unreadable rows.

    Raises Damaged, Foreign, StorageFailed.
    """
    database = FrozenDatabase(state / FILE, tables.schemas)
    for one in tables.kept:
        for reason in database.read_now(one.leave_out):
            _log.warning("an unreadable row is left out", extra={"reason": reason})
    return database


def _sound(database: Database, kept: Sequence[Kept]) -> Database:
    """The database, if every row that no file can rebuild is readable. Else close it and raise Damaged."""
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
    _log.warning("the database was rebuilt", extra={**_facts(rebuilt)})
    return rebuilt


def set_aside(state: Path) -> Path | None:
    """Set the database and its write-ahead log aside; returns the new name, None if the file is empty or missing.

    The database keeps its old name too, until the new file replaces it. The log loses its old name at once, because
    SQLite would apply it to the new file.
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


def _make(path: Path, state: Path, tables: Tables, copy: RowCopy | None) -> tuple[int, list[str], int]:
    salvaged: list[str] = []
    total = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")  # one fsync at the end, before the file gets its name
        prepare(db, tables.schemas)
        with transaction(db), _damaged(state / FILE) as (damaged, is_complete):
            for one in tables.kept:
                rows, is_whole = _salvage(damaged, one)
                one.restore(db, rows)
                if is_whole and is_complete:
                    salvaged.append(one.name)
                elif copy:  # after the salvaged rows, which are newer
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
    """The readable rows of a damaged database, if their tables are sound; and whether no row is missing."""
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


def _time(copy: RowCopy | None) -> str | None:
    return datetime.fromtimestamp(copy.written / 1e9, UTC).isoformat(timespec="seconds") if copy else None


def _facts(rebuilt: Rebuilt) -> dict[str, object]:
    return {name: getattr(rebuilt, name) for name in ("reason", "aside", "copied", "rows", "salvaged", "found")}
