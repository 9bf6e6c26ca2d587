"""Labels: key-value pairs that programs attach to a subject of the state directory. imgfs gives them no meaning.

This module owns the label table and its limits. The store of each subject decides which subjects exist.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Mapping
from typing import cast

from imgfs.database.database import Database
from imgfs.database.kept import Kept
from imgfs.errors import Invalid, NotFound

KEY_BYTES_MAX = 244
"""With this limit, `user.label.<key>` is a valid name of an extended attribute."""
SIZE_MAX = 4096
"""Bytes of key and value together. containerd has the same limit."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS content_labels (
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (subject, key)
) WITHOUT ROWID;
"""


def _check_row(subject: str, key: str, value: bytes) -> None:
    check_label(key, value)


def kept(table: str) -> Kept:
    """Return what the copy of the database holds of a label table."""
    select = f"SELECT subject, key, value FROM {table} ORDER BY subject, key"
    insert = f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)"
    return Kept(tuple[str, str, bytes], (table,), select, insert, _check_row)


KEPT = kept("content_labels")


def check_label(key: str, value: bytes) -> None:
    """Raise Invalid if `key` or `value` is not valid.

    Checks types too, because library callers pass values directly.
    """
    if not isinstance(cast("object", value), bytes):
        raise Invalid(f"label {key[:80]!r}: value is {type(value).__name__}, expected bytes")
    if not key or not key.isprintable() or len(key.encode()) > KEY_BYTES_MAX:
        raise Invalid(f"label key {key[:80]!r}: expected 1 to {KEY_BYTES_MAX} printable bytes")
    if len(key.encode()) + len(value) > SIZE_MAX:
        raise Invalid(f"label {key}: key and value exceed {SIZE_MAX} bytes")


class Labels:
    """The labels of one kind of subject, in memory. Every change is durable when its call returns."""

    def __init__(self, database: Database, table: str = "content_labels") -> None:
        """Load `table`, which has the columns of SCHEMA."""
        self._database = database
        self._table = table
        self._labels: dict[str, dict[str, bytes]] = {}
        rows = database.read_now(lambda db: db.execute(f"SELECT subject, key, value FROM {table}").fetchall())
        for subject, key, value in rows:
            self._labels.setdefault(subject, {})[key] = value

    def of(self, subject: str) -> dict[str, bytes]:
        """Return the labels of a subject, sorted by key."""
        return dict(sorted(self._labels.get(subject, {}).items()))

    async def put(self, subject: str, key: str, value: bytes, exists: Callable[[sqlite3.Connection], bool]) -> None:
        """Set or replace one label.

        Raises Invalid, NoSpace, StorageFailed, and NotFound if `exists` returns False inside the transaction.
        """
        await self.update(subject, {key: value}, exists)

    async def update(
        self, subject: str, changes: Mapping[str, bytes | None], exists: Callable[[sqlite3.Connection], bool]
    ) -> None:
        """Set or replace labels in one transaction; a value of None removes the label if it exists. Raises as `put`."""
        for key, value in changes.items():
            check_label(key, b"" if value is None else value)

        def change(db: sqlite3.Connection) -> None:
            if not exists(db):
                raise NotFound(f"label {', '.join(changes)}: {subject} was removed meanwhile")
            for key, value in changes.items():
                self._change(db, subject, key, value)

        await self._database.write(change, frees=all(value is None for value in changes.values()))
        changed = {**self._labels.get(subject, {}), **changes}
        self._labels[subject] = {key: value for key, value in changed.items() if value is not None}

    async def remove(self, subject: str, key: str) -> None:
        """Remove one label, also on a full disk. Raises NotFound, NoSpace, StorageFailed."""
        if key not in self._labels.get(subject, {}):
            raise NotFound(f"label {key!r}: {subject} has no such label")
        await self._database.write(
            lambda db: db.execute(f"DELETE FROM {self._table} WHERE subject = ? AND key = ?", (subject, key)),
            frees=True,
        )
        self._labels.get(subject, {}).pop(key, None)

    async def clear(self, subject: str) -> None:
        """Remove all labels of a removed subject, also on a full disk. Raises StorageFailed."""
        gone = f"DELETE FROM {self._table} WHERE subject = ?"
        await self._database.write(lambda db: db.execute(gone, (subject,)), frees=True)
        self._labels.pop(subject, None)

    def _change(self, db: sqlite3.Connection, subject: str, key: str, value: bytes | None) -> None:
        if value is None:
            db.execute(f"DELETE FROM {self._table} WHERE subject = ? AND key = ?", (subject, key))
        else:
            db.execute(f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?, ?)", (subject, key, value))

    def forget(self, subject: str) -> None:
        """Drop the labels of a subject from memory. The caller deleted their rows together with the subject's row."""
        self._labels.pop(subject, None)

    async def sweep(self, subjects: Container[str]) -> None:
        """Remove the labels of all subjects that are not in `subjects`.

        A crash between the removal of a subject and the removal of its labels leaves such labels.
        """
        for subject in [subject for subject in self._labels if subject not in subjects]:
            await self.clear(subject)
