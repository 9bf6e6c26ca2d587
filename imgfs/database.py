"""The SQLite file of the state directory: one writer, readers that never wait for it, every commit durable.

Rooms own their tables: each declares a SCHEMA of `CREATE ... IF NOT EXISTS` statements and hands functions over a
connection to `read` and `write`. What a table means, and what can be rebuilt from files, is said where it is declared.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import NoSpace, StorageFailed

T = TypeVar("T")

RESERVE = 1 << 20
"""Bytes on disk beside the database for the start and for what makes room: both have to work when the disk is full."""

_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class Database:
    """An open database. Only one process may open a state directory; the daemon's lock sees to that."""

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        """Open or create `path`; raises StorageFailed where it is no database or cannot be opened."""
        self._path = path
        self._reserve = _Reserve(path.with_name(f"{path.name}.reserve"))
        self._reserve.release()
        self._writing = trio.Lock()
        self._reading = trio.Lock()
        try:
            self._writer = self._connect()
            for schema in schemas:
                self._writer.executescript(schema)
            self._reader = self._connect()
        except sqlite3.Error as error:
            raise StorageFailed(f"{path}: {error}; move it aside to start with an empty one") from None
        self._reserve.fill()

    def close(self) -> None:
        """Close both connections; everything committed is on disk already."""
        self._reader.close()
        self._writer.close()

    async def write(self, change: Callable[[sqlite3.Connection], T], *, frees: bool = False) -> T:
        """Run `change` in one transaction: on return it is durable, on an exception nothing of it happened.

        What `frees` room may use up the reserve, so it works on a full disk. A cancelled caller still waits for a
        transaction that has begun. Raises NoSpace or StorageFailed.
        """
        async with self._writing:
            return await run_disk(self._transact_in_reserve if frees else self._transact, change)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on a snapshot that a writer never blocks. Raises StorageFailed."""
        async with self._reading:
            return await run_disk(self._query, query)

    def read_now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As `read`, in this thread: for the start, before anything is served."""
        return self._query(query)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = change(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            return result
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _transact_in_reserve(self, change: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._transact(change)
        except NoSpace:
            self._reserve.release()
            return self._transact(change)
        finally:
            self._reserve.fill()

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return query(self._reader)
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _explain(self, error: sqlite3.Error) -> NoSpace | StorageFailed:
        if getattr(error, "sqlite_errorcode", None) in _FULL:
            return NoSpace(f"{self._path}: the disk is full; make room and try again")
        return StorageFailed(f"{self._path}: {error}; if it is damaged, move it aside to start with an empty one")


class _Reserve:
    """A file that is in the way of others until its room is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def release(self) -> None:
        """Give the room up."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def fill(self) -> None:
        """Take the room unless it is held; where there is none, the next one to come here tries again."""
        if self._path.exists():
            return
        try:
            with self._path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError:
            self.release()
