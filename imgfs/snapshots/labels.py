"""Labels of snapshots, user snapshots and image chains alike: words for programs, without a meaning here.

A label belongs to the snapshot and not to its id: it stays over a commit and goes with the removal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from imgfs.database import Database
from imgfs.errors import Invalid, NotFound

KEY_BYTES_MAX = 244
"""So that `user.label.<key>` is a name that an extended attribute may have."""
SIZE_MAX = 4096
"""Bytes of key and value together, as containerd has it."""


def check_label(key: str, value: bytes) -> None:
    """Raise Invalid for what no label may be."""
    if not key or not key.isprintable() or len(key.encode()) > KEY_BYTES_MAX:
        raise Invalid(f"label key {key[:80]!r}: expected 1 to {KEY_BYTES_MAX} printable bytes")
    if len(key.encode()) + len(value) > SIZE_MAX:
        raise Invalid(f"label {key}: key and value exceed {SIZE_MAX} bytes")


class Labels:
    """All labels of one state directory, in memory. Subjects are chain IDs and the numbers of user snapshots."""

    def __init__(self, database: Database) -> None:
        """Load the table, whose SCHEMA is rows.py's."""
        self._database = database
        self._labels: dict[str, dict[str, bytes]] = {}
        rows = database.read_now(lambda db: db.execute("SELECT snapshot, key, value FROM snapshot_labels").fetchall())
        for subject, key, value in rows:
            self._labels.setdefault(subject, {})[key] = value

    def of(self, subject: str) -> dict[str, bytes]:
        """The labels of a snapshot by key, sorted."""
        return dict(sorted(self._labels.get(subject, {}).items()))

    async def put(self, subject: str, key: str, value: bytes, exists: Callable[[sqlite3.Connection], bool]) -> None:
        """Set or replace a label, durably. Raises Invalid, NoSpace, StorageFailed, NotFound unless `exists` still."""
        check_label(key, value)

        def change(db: sqlite3.Connection) -> None:
            if not exists(db):
                raise NotFound(f"label {key}: its snapshot was removed meanwhile")
            db.execute("INSERT OR REPLACE INTO snapshot_labels VALUES (?, ?, ?)", (subject, key, value))

        await self._database.write(change)
        self._labels.setdefault(subject, {})[key] = value

    async def remove(self, subject: str, key: str) -> None:
        """Remove a label, durably. Raises NotFound, NoSpace, StorageFailed."""
        if key not in self._labels.get(subject, {}):
            raise NotFound(f"label {key!r}: the snapshot has no such label")
        await self._database.write(
            lambda db: db.execute("DELETE FROM snapshot_labels WHERE snapshot = ? AND key = ?", (subject, key))
        )
        self._labels.get(subject, {}).pop(key, None)

    def forget(self, subject: str) -> None:
        """The labels went with the row of their snapshot."""
        self._labels.pop(subject, None)
