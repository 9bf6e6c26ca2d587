"""Whether the file is whole, and what SQLite says where it is not."""

from __future__ import annotations

import sqlite3

from imgfs.errors import StorageFailed

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Damaged(StorageFailed):
    """The file is no database, or does not check out."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it tells of a file that is no whole database, and not of a disk or of somebody else's lock."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def check(db: sqlite3.Connection, table: str = "", *, deep: bool = False, schema: str = "main") -> None:
    """Raise sqlite3.DatabaseError unless the table, or all of the file, is whole; `deep` compares indexes as well."""
    word = "integrity_check" if deep else "quick_check"
    found = db.execute(f"PRAGMA {schema}.{word}({table or 1})").fetchone()[0]
    if found != "ok":
        raise damage(" ".join(found.split()))


def damage(reason: str) -> sqlite3.DatabaseError:
    """What SQLite would raise, for damage that it does not see itself."""
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
