"""Notes on snapshot directories, from which a lost database gets its rows back.

A note is a copy of the row as an xattr. The row counts: the note is written after it and is not synced, so it is read
only if the row is lost or older.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import msgspec

from imgfs.snapshots import rows
from imgfs.snapshots.directories import SnapshotDirectories
from imgfs.snapshots.ids import shown
from imgfs.snapshots.rows import Info, SnapshotKind

_log = logging.getLogger("imgfs.snapshots")


class _Note(msgspec.Struct, frozen=True):
    """Names are bytes, because they need not be UTF-8."""

    kind: SnapshotKind
    name: bytes
    parent: bytes
    used: bool
    created: int
    updated: int


def encode(info: Info) -> bytes:
    """Return the note for a snapshot."""
    name, parent = os.fsencode(info.name), os.fsencode(info.parent or "")
    return msgspec.json.encode(_Note(info.kind, name, parent, info.used, info.created, info.updated))


def decode(number: int, note: bytes | None) -> Info | None:
    """Return the snapshot that a note describes, or None if it cannot be decoded."""
    try:
        read = msgspec.json.decode(note or b"", type=_Note)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    parent = os.fsdecode(read.parent) or None
    return Info(number, read.kind, os.fsdecode(read.name), parent, read.created, read.updated, read.used)


def adopt(db: sqlite3.Connection, state: Path) -> int:
    """Write a row for each snapshot directory whose row is lost or older than its note, and return how many.

    rescue/ calls it for a rebuilt database. A directory that holds changes and has neither row nor note becomes the
    active snapshot `recovered-<number>`. It has no parent; a user may set the parent until the rootfs is used.
    """
    directories = SnapshotDirectories(state)
    found = rows.select(db)
    known = {info.number: info for info in found.infos}
    put = 0
    for number in sorted(directories.numbers().difference(found.removed)):
        info = _judge(directories, number, known.get(number))
        if info is not None and info != known.get(number):
            _put(db, info)
            put += 1
    return put


def _judge(directories: SnapshotDirectories, number: int, row: Info | None) -> Info | None:
    """Return the newer of a directory's row and its note."""
    noted = decode(number, directories.noted(number))
    if noted is not None and (row is None or noted.updated > row.updated):
        return noted
    if row is not None or directories.is_empty(number):
        return row
    return _nameless(number)


def _put(db: sqlite3.Connection, info: Info) -> None:
    try:
        rows.put(db, info)
    except sqlite3.IntegrityError:  # another snapshot has the name
        info = replace(_nameless(info.number), parent=info.parent, used=info.used)
        rows.put(db, info)
    _log.warning("snapshot found by its directory", extra={"snapshot": shown(info.id), "number": info.number})


def _nameless(number: int) -> Info:
    return Info(number, SnapshotKind.ACTIVE, f"recovered-{number}", None, 0, 0)
