"""What stands on a snapshot's directory about it, and the rows that a lost database gets back from there.

The row is what counts. The note is written after it and not synced, so it is asked only where the row is lost or older.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import msgspec

from imgfs.snapshots import rows
from imgfs.snapshots.ids import shown
from imgfs.snapshots.rows import Info, Kind
from imgfs.snapshots.shelf import Shelf

_log = logging.getLogger("imgfs.snapshots")


class _Note(msgspec.Struct, frozen=True):
    """Names are bytes: they may be no text."""

    kind: Kind
    name: bytes
    parent: bytes
    used: bool
    created: int
    updated: int


def encode(info: Info) -> bytes:
    """The note of a snapshot."""
    name, parent = os.fsencode(info.name), os.fsencode(info.parent or "")
    return msgspec.json.encode(_Note(info.kind, name, parent, info.used, info.created, info.updated))


def decode(number: int, note: bytes | None) -> Info | None:
    """The snapshot that a note tells of; None where it cannot be read."""
    try:
        read = msgspec.json.decode(note or b"", type=_Note)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    parent = os.fsdecode(read.parent) or None
    return Info(number, read.kind, os.fsdecode(read.name), parent, read.created, read.updated, read.used)


def adopt(db: sqlite3.Connection, state: Path) -> int:
    """Give each directory with a snapshot the row that it had, or one by which its changes can be found.

    For a database that was made anew (rescue/). Returns how many rows were put. What has neither row nor note and holds
    changes becomes active under `recovered-<number>`, without a parent, which may be set until its rootfs is used.
    """
    shelf = Shelf(state)
    found = rows.select(db)
    known = {info.number: info for info in found.infos}
    put = 0
    for number in sorted(shelf.numbers().difference(found.removed)):
        info = _judge(shelf, number, known.get(number))
        if info is not None and info != known.get(number):
            _put(db, info)
            put += 1
    return put


def _judge(shelf: Shelf, number: int, row: Info | None) -> Info | None:
    """What is believed of a directory: the newer of its row and its note."""
    noted = decode(number, shelf.noted(number))
    if noted is not None and (row is None or noted.updated > row.updated):
        return noted
    if row is not None or shelf.is_empty(number):
        return row
    return _nameless(number)


def _put(db: sqlite3.Connection, info: Info) -> None:
    try:
        rows.put(db, info)
    except sqlite3.IntegrityError:  # another one has the name
        info = replace(_nameless(info.number), parent=info.parent, used=info.used)
        rows.put(db, info)
    _log.warning("snapshot found by its directory", extra={"snapshot": shown(info.id), "number": info.number})


def _nameless(number: int) -> Info:
    return Info(number, Kind.ACTIVE, f"recovered-{number}", None, 0, 0)
