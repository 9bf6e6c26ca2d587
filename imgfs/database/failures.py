"""SQLite's errors: which of them mean damage, a full disk or a read-only disk, and the error to raise instead."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from imgfs.errors import NoSpace, ReadOnly, StorageFailed
from imgfs.state import is_read_only

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""Primary codes of SQLite for a disk that refuses changes. SQLite does not pass the errno on."""


class Damaged(StorageFailed):
    """The file is no database, or it fails a check."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the error means a damaged file, and not a failing disk or a lock of another process."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def is_full(error: sqlite3.Error) -> bool:
    """Whether the error means a full disk."""
    return getattr(error, "sqlite_errorcode", None) in _FULL


def is_unwritable(error: sqlite3.Error) -> bool:
    """Whether the error means a disk that refuses changes or fails; SQLite does not distinguish these."""
    return getattr(error, "sqlite_errorcode", -1) & 0xFF in _UNWRITABLE


def check(db: sqlite3.Connection, table: str = "", *, deep: bool = False, schema: str = "main") -> None:
    """Raise sqlite3.DatabaseError unless the table, or the whole file, is sound; `deep` compares indexes too."""
    word = "integrity_check" if deep else "quick_check"
    found = db.execute(f"PRAGMA {schema}.{word}({table or 1})").fetchone()[0]
    if found != "ok":
        raise damage(" ".join(found.split()))


def damage(reason: str) -> sqlite3.DatabaseError:
    """The error that SQLite raises for damage, for damage that SQLite itself does not detect."""
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def explained(error: sqlite3.Error, path: Path) -> NoSpace | ReadOnly | StorageFailed:
    """The error to raise instead, for the database at `path`; it says what to do next."""
    if is_full(error):
        return NoSpace(f"{path}: the disk is full; make room and try again")
    if is_damage(error):
        return Damaged(f"{path}: {error}; mount again or run `imgfs repair`: it is rebuilt, or move it aside")
    if is_unwritable(error) and is_read_only(path.parent):
        return ReadOnly(f"{path}: lies on a read-only filesystem; remount it writable")
    return StorageFailed(f"{path}: {error}; check the disk of the state directory")
