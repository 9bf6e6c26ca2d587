"""The open database: one writer at a time, each change a transaction, readers beside it; the connections."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote_from_bytes

import trio

from imgfs.aio.threads import run_disk
from imgfs.database.failures import check, explained
from imgfs.database.format import check_origin, prepare
from imgfs.database.migrations import declared, transaction
from imgfs.errors import NoSpace

T = TypeVar("T")

RESERVE = 1 << 20
"""Bytes of reserved disk space. The start and every change that frees space use them, so both work on a full disk."""


class Database:
    """An open database. The lock of the state directory (lock.py) keeps other processes from changing it."""

    is_frozen = False
    """Whether the database refuses every change."""

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        """Open or create `path`, and take it to the current format.

        Raises Damaged if the file is damaged, Foreign if another program or a later imgfs wrote it, NoSpace, and
        StorageFailed if it cannot be opened.
        """
        self._path = path
        self.version = 0
        """The number of changes since the database was opened."""
        self._changed = trio.Event()
        self._reserve = Reserve(path)
        self._reserve.release()
        self._writing = trio.Lock()
        self._reading = trio.Lock()
        tables = declared(schemas)
        try:
            self._writer = connect(path, tables)
            try:
                check(self._writer)
                prepare(self._writer, schemas)
                self._reader = connect(path, tables)
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as error:
            raise explained(error, self._path) from None
        self._reserve.fill()

    def close(self) -> None:
        """Close both connections. Everything committed is on disk already."""
        self._reader.close()
        self._writer.close()

    async def write(
        self, change: Callable[[sqlite3.Connection], T], *, frees: bool = False, then: Callable[[], None] | None = None
    ) -> T:
        """Run `change` in one transaction: it is durable on return, and has no effect if it raises.

        `then` runs in the same thread after the commit, and must not raise. A change that `frees` space may use the
        reserve, so it works on a full disk. A transaction that has begun is not cancelled. Raises NoSpace, ReadOnly,
        StorageFailed, and what `change` raises.
        """
        transact = self._transact_in_reserve if frees else self._transact

        def change_and_then() -> T:
            result = transact(change)
            if then is not None:
                then()
            return result

        async with self._writing:
            result = await run_disk(change_and_then)
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()
        return result

    async def wait_changed(self, version: int) -> None:
        """Wait until the version differs from `version`; any number of tasks may wait."""
        while self.version == version:
            await self._changed.wait()

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on a consistent snapshot, without waiting for a writer. Raises StorageFailed."""
        async with self._reading:
            return await run_disk(self._query, query)

    def read_now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` and block: for the start, before the daemon serves requests. Raises StorageFailed."""
        return self._query(query)

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with transaction(self._writer):
                return change(self._writer)
        except sqlite3.Error as error:
            raise explained(error, self._path) from None

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
            raise explained(error, self._path) from None


class Reserve:
    """A file beside the database that keeps disk space until the database needs it."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}.reserve")

    def release(self) -> None:
        """Give the space back to the disk."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)  # not through Disk: it has no content

    def fill(self) -> None:
        """Reserve the space unless it is reserved. On a full disk nothing happens, and a later call tries again."""
        if self._path.exists():
            return
        try:
            with self._path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError:
            self.release()


def connect(path: Path, tables: Collection[str]) -> sqlite3.Connection:
    """Open a connection whose commits are durable and whose readers wait for no writer. The caller closes it.

    Raises sqlite3.Error, and Foreign for a database of another program or a later imgfs, which stays unchanged.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        check_origin(connection, path, tables)  # before the first statement that changes the file
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.text_factory = decoded
    except BaseException:
        connection.close()
        raise
    return connection


def read_only(path: Path) -> sqlite3.Connection:
    """Open a read-only connection, beside a daemon or without one. The caller closes it. Raises sqlite3.Error."""
    return sqlite3.connect(f"file:{quote_from_bytes(bytes(path))}?mode=ro", uri=True, timeout=10)


def decoded(data: bytes) -> str:
    """Decode a text of SQLite. Bytes that are no UTF-8 must harm only readers of that row, not of the table."""
    return data.decode(errors="surrogateescape")
