"""The rows of user snapshots in the database: what they hold, and how they are read and written.

A removed snapshot keeps a row of kind `removed` until its directory is gone. So a start can tell the directory of an
unfinished removal, which it removes, from a directory whose database is lost, which holds a user's work.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from imgfs.content import labels
from imgfs.database.kept import Kept
from imgfs.snapshots.ids import active_id
from imgfs.snapshots.usage import Usage

SCHEMA = """
CREATE TABLE IF NOT EXISTS user_snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    name BLOB NOT NULL,
    parent BLOB NOT NULL,
    used INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    bytes INTEGER,
    inodes INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS active_snapshots ON user_snapshots (name) WHERE kind = 'active';
CREATE UNIQUE INDEX IF NOT EXISTS named_snapshots ON user_snapshots (name) WHERE kind IN ('committed', 'view');
CREATE TABLE IF NOT EXISTS snapshot_labels (
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (subject, key)
) WITHOUT ROWID;
"""

_COLUMNS = "number, kind, name, parent, used, created, updated, bytes, inodes"
REMOVED = "removed"


class SnapshotKind(Enum):
    """The kind of a snapshot: writable, a name that pins another snapshot, or immutable."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


def _check_row(number: int, kind: str, *others: object) -> None:
    if kind != REMOVED:
        SnapshotKind(kind)


KEPT = (
    Kept(
        tuple[int, str, bytes, bytes, int, int, int, int | None, int | None],
        ("user_snapshots",),
        f"SELECT {_COLUMNS} FROM user_snapshots ORDER BY number",
        f"INSERT OR IGNORE INTO user_snapshots ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        _check_row,
    ),
    labels.kept("snapshot_labels"),
)


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot; times in nanoseconds since the epoch.

    `number` is permanent, also over a commit, and never reused; user snapshots and image chains have separate numbers.
    `name` is the key of an active snapshot. `parent` is an id; of a view it is what the view pins.
    `used` says that the rootfs of an active snapshot was mounted, so that its parent is settled. `damaged` says that
    the directory with its changes is not on disk any more.
    """

    number: int
    kind: SnapshotKind
    name: str
    parent: str | None
    created: int
    updated: int
    used: bool = False
    damaged: bool = False

    @property
    def id(self) -> str:
        """The path below snapshots/: the name, or `active/<key>`."""
        return active_id(self.name) if self.kind is SnapshotKind.ACTIVE else self.name


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of the table."""

    infos: list[Info]
    usages: dict[int, Usage]
    removed: list[int]
    last: int
    """The highest number that was ever used."""


def select(db: sqlite3.Connection) -> Rows:
    """Read all rows of the table."""
    rows = Rows([], {}, [], _last(db))
    query = f"SELECT {_COLUMNS} FROM user_snapshots"
    for number, kind, name, parent, used, created, updated, size, inodes in db.execute(query):
        if kind == REMOVED:
            rows.removed.append(number)
            continue
        above = os.fsdecode(parent) or None
        rows.infos.append(Info(number, SnapshotKind(kind), os.fsdecode(name), above, created, updated, bool(used)))
        if inodes is not None:
            rows.usages[number] = Usage(size, inodes)
    return rows


def exists(db: sqlite3.Connection, number: int) -> bool:
    """Return whether a snapshot exists and is not removed."""
    query = "SELECT 1 FROM user_snapshots WHERE number = ? AND kind <> ?"
    return db.execute(query, (number, REMOVED)).fetchone() is not None


def put(db: sqlite3.Connection, info: Info) -> None:
    """Insert or change a row. A recorded usage is kept."""
    db.execute(
        "INSERT INTO user_snapshots (number, kind, name, parent, used, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (number) DO UPDATE SET kind = excluded.kind, name = excluded.name, parent = excluded.parent,"
        " used = excluded.used, updated = excluded.updated",
        (
            info.number,
            info.kind.value,
            os.fsencode(info.name),
            os.fsencode(info.parent or ""),
            info.used,
            info.created,
            info.updated,
        ),
    )


def put_usage(db: sqlite3.Connection, number: int, usage: Usage) -> None:
    """Record the usage of a committed snapshot."""
    db.execute("UPDATE user_snapshots SET bytes = ?, inodes = ? WHERE number = ?", (usage.bytes, usage.inodes, number))


def delete(db: sqlite3.Connection, number: int) -> None:
    """Delete a row and its labels. For snapshots without a directory only."""
    db.execute("DELETE FROM user_snapshots WHERE number = ?", (number,))
    db.execute("DELETE FROM snapshot_labels WHERE subject = ?", (str(number),))


def mark_removed(db: sqlite3.Connection, number: int) -> None:
    """Mark a snapshot as removed: from now on only the sweep of a start finds it."""
    db.execute("UPDATE user_snapshots SET kind = ? WHERE number = ?", (REMOVED, number))
    db.execute("DELETE FROM snapshot_labels WHERE subject = ?", (str(number),))


def purge(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Delete rows of removed snapshots whose directories are gone."""
    db.executemany("DELETE FROM user_snapshots WHERE number = ?", [(number,) for number in numbers])


def _last(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'user_snapshots'").fetchone()
    return row[0] if row else 0
