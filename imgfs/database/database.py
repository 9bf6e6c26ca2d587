"""The open database: changes one after the other, each a transaction; readers beside them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from imgfs.aio.threads import run_disk
from imgfs.database.connections import connect
from imgfs.database.damage import check
from imgfs.database.failures import explained
from imgfs.database.format import prepare
from imgfs.database.migrations import transaction
from imgfs.database.reserve import Reserve
from imgfs.database.schema import declared
from imgfs.errors import NoSpace

T = TypeVar("T")


class Database:
    """An open database. Only one process may change a state directory; its lock (lock.py) sees to that."""

    is_frozen = False
    """Whether every change is refused."""

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        """Open or create `path`; raises Damaged where it is no whole database, Foreign where it is not one of this
        imgfs, StorageFailed where it will not open.
        """
        self._path = path
        self.version = 0
        """How many changes there were since it was opened."""
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
        """Close both connections; everything committed is on disk already."""
        self._reader.close()
        self._writer.close()

    async def write(
        self, change: Callable[[sqlite3.Connection], T], *, frees: bool = False, then: Callable[[], None] | None = None
    ) -> T:
        """Run `change` in one transaction: on return it is durable, on an exception nothing of it happened.

        `then` is done in the same thread once it is durable, and raises nothing.

        What `frees` room may use up the reserve, so it works on a full disk. A cancelled caller still waits for a
        transaction that has begun. Raises NoSpace, ReadOnly or StorageFailed.
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
        """Wait until `version` is another one; however many wait, all hear of it."""
        while self.version == version:
            await self._changed.wait()

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run `query` on a snapshot that a writer never blocks. Raises StorageFailed."""
        async with self._reading:
            return await run_disk(self._query, query)

    def read_now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """As `read`, in this thread: for the start, before anything is served."""
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
