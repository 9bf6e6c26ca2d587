"""Reading a database without changing it: an in-memory copy, which includes what a crash left in the WAL file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TypeVar

import trio

from imgfs.database.database import Database, read_only
from imgfs.database.failures import Damaged, check, is_unwritable
from imgfs.database.format import check_origin, is_outdated, prepare
from imgfs.database.migrations import declared, migrated_copy
from imgfs.errors import from_os, opened_read_only
from imgfs.state import is_read_only

T = TypeVar("T")

_SHARED = "/dev/shm"
"""A filesystem in memory, for hosts where no disk can be written."""


class FrozenDatabase(Database):
    """The database of a state directory that cannot or must not be changed: an in-memory copy that is never written.

    The copy shows the moment of opening, also while a daemon writes to the file. Without a file it is empty.
    """

    is_frozen = True

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        """Copy `path`. Raises Damaged and Foreign like Database, and StorageFailed if the file cannot be read."""
        self._path = path
        self.version = 0
        self._changed = trio.Event()
        self._reading = trio.Lock()
        self._reader = self._writer = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with ExitStack() as opening:
            opening.callback(self.close)
            self._fill(schemas)
            opening.pop_all()

    def _fill(self, schemas: Sequence[str]) -> None:
        try:
            _copy(self._path, self._reader)
            check_origin(self._reader, self._path, declared(schemas))
            check(self._reader)
            prepare(self._reader, schemas)
        except sqlite3.Error as error:
            hint = "where its filesystem is read-only, remount it, so that it can be rebuilt; else run `imgfs repair`"
            raise Damaged(f"{self._path}: {error}; {hint}") from None
        except OSError as error:
            raise from_os(error, str(self._path)) from None

    async def write(
        self, change: Callable[[sqlite3.Connection], T], *, frees: bool = False, then: Callable[[], None] | None = None
    ) -> T:
        """Raises ReadOnly."""
        raise opened_read_only(str(self._path))


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a read-only connection: to the file, or to an in-memory copy if the disk is read-only or the format is old.

    The copy has the current format. The caller closes the connection. Raises sqlite3.Error, and OSError if the file
    cannot be copied.
    """
    opened = _open_file_or_copy(path)
    try:
        if not is_outdated(opened):
            return opened
        migrated = migrated_copy(opened)
    except BaseException:
        opened.close()
        raise
    opened.close()
    return migrated


def _open_file_or_copy(path: Path) -> sqlite3.Connection:
    try:
        return _opened(read_only(path), lambda db: db.execute("SELECT 1 FROM sqlite_schema LIMIT 1"))
    except sqlite3.OperationalError as error:
        if not (is_unwritable(error) and is_read_only(path.parent)):
            raise
    return _opened(sqlite3.connect(":memory:"), lambda db: _copy_files(path, db))


def _opened(connection: sqlite3.Connection, begin: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    """The connection after its first use, which opens the file; it is closed if that fails."""
    with ExitStack() as opening:
        opening.callback(connection.close)
        begin(connection)
        opening.pop_all()
    return connection


def _copy(path: Path, target: sqlite3.Connection) -> None:
    """Copy a database into `target`: through SQLite if a process has it open, so that the copy is consistent."""
    if path.with_name(f"{path.name}-shm").exists():
        try:
            with closing(read_only(path)) as source:
                source.backup(target)
                return
        except sqlite3.OperationalError as error:
            if not is_unwritable(error):
                raise
    _copy_files(path, target)


def _copy_files(path: Path, target: sqlite3.Connection) -> None:
    """Copy a database without a writer into `target`, with its WAL file, if there is one.

    SQLite cannot open a database in WAL mode in a directory where it can create no file, and the WAL file holds
    commits that count.
    """
    with tempfile.TemporaryDirectory(dir=_SHARED if os.access(_SHARED, os.W_OK) else None) as directory:
        copied = Path(directory) / path.name
        for name in (path.name, f"{path.name}-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(name), copied.with_name(name))
        with closing(sqlite3.connect(copied)) as source:
            source.backup(target)
