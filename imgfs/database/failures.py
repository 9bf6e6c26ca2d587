"""What SQLite's errors mean to who has a state directory: a full disk, one that takes no change, damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from imgfs.database.damage import Damaged, is_damage
from imgfs.errors import NoSpace, ReadOnly, StorageFailed
from imgfs.state import is_read_only

_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""Primary codes of what SQLite says where the disk takes no change; it does not pass the errno on."""


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk had no room."""
    return getattr(error, "sqlite_errorcode", None) in _FULL


def is_unwritable(error: sqlite3.Error) -> bool:
    """Whether the disk takes no change here, or fails; SQLite does not tell these apart."""
    return getattr(error, "sqlite_errorcode", -1) & 0xFF in _UNWRITABLE


def explained(error: sqlite3.Error, path: Path) -> NoSpace | ReadOnly | StorageFailed:
    """What to raise in its place, of the database at `path`: with what to do next."""
    if is_full(error):
        return NoSpace(f"{path}: the disk is full; make room and try again")
    if is_damage(error):
        return Damaged(f"{path}: {error}; mount again or run `imgfs repair`: it is rebuilt, or move it aside")
    if is_unwritable(error) and is_read_only(path.parent):
        return ReadOnly(f"{path}: lies on a read-only filesystem; remount it writable")
    return StorageFailed(f"{path}: {error}; check the disk of the state directory")
