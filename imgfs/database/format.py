"""Whose database a file is, and of which format: told by two marks in its head."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path

from imgfs.database.schema import columns
from imgfs.errors import StorageFailed

FORMAT = 1
"""Which tables there are and what their rows mean, in the file's `user_version`. A new one is for changes that an older
imgfs would not understand; it has to say how files of the older formats are taken over."""
_OWN = 0x696D6766
"""`imgf`: the file's `application_id`, by which it is told from other programs' databases."""


class Foreign(StorageFailed):
    """The file is a whole database, but another program's or a later imgfs's: it is neither changed nor rebuilt."""


def check_origin(db: sqlite3.Connection, path: Path, tables: Collection[str]) -> None:
    """Raise Foreign unless this imgfs made the database, or an earlier one did. Raises sqlite3.Error.

    Those before FORMAT did not mark theirs: such a file has at least one of `tables`, or none at all.
    """
    program, form = (db.execute(f"PRAGMA {word}").fetchone()[0] for word in ("application_id", "user_version"))
    if program == _OWN and form > FORMAT:
        raise Foreign(
            f"{path}: is of format {form}, this imgfs knows {FORMAT}; a later imgfs has written it: use that, or "
            "move the file aside, and it is made anew from its copy and from files"
        )
    found = set(columns(db))
    if program not in (0, _OWN) or (program == 0 and found and found.isdisjoint(tables)):
        raise Foreign(f"{path}: is the database of another program; move it aside, or name another directory")


def mark_origin(db: sqlite3.Connection) -> None:
    """Write down who made the database, and its format."""
    found = [db.execute(f"PRAGMA {word}").fetchone()[0] for word in ("application_id", "user_version")]
    if found != [_OWN, FORMAT]:
        db.execute(f"PRAGMA application_id = {_OWN}")
        db.execute(f"PRAGMA user_version = {FORMAT}")
