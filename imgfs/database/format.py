"""The files of the database, the marks in a database's head that name its program and format, and preparing it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path

from imgfs.database.migrations import check_columns, columns, current_format, format_of, migrate
from imgfs.errors import StorageFailed

FILE = "imgfs.db"
"""The name of the database in the state directory."""
COPY = "imgfs.copy"
COPY_OLD = f"{COPY}.old"
"""The names of the copy that rescue/ keeps, and of the previous copy."""
ASIDE = f"{FILE}.damaged-"
"""The beginning of the names of databases that were set aside; the user removes them."""
_OWN = 0x696D6766
"""`imgf`: the `application_id` that distinguishes the file from databases of other programs."""


class Foreign(StorageFailed):
    """The file is a sound database of another program or a later imgfs: it is neither changed nor rebuilt."""


def later(path: Path, form: int) -> Foreign:
    """The error for a file that a later imgfs has written in a format that this one does not know."""
    return Foreign(
        f"{path}: has format {form}, this imgfs knows formats up to {current_format()}; a later imgfs has written it: "
        "use that imgfs, or move imgfs.db, imgfs.copy and imgfs.copy.old aside to begin without their rows"
    )


def check_origin(db: sqlite3.Connection, path: Path, tables: Collection[str]) -> None:
    """Raise Foreign unless this imgfs or an earlier one made the database. Raises sqlite3.Error.

    The first releases did not mark their files: such a file has at least one of `tables`, or no table at all.
    """
    program, form = (db.execute(f"PRAGMA {word}").fetchone()[0] for word in ("application_id", "user_version"))
    if program == _OWN and form > current_format():
        raise later(path, form)
    found = set(columns(db))
    if program not in (0, _OWN) or (program == 0 and found and found.isdisjoint(tables)):
        raise Foreign(f"{path}: is the database of another program; move it aside, or name another directory")


def is_outdated(db: sqlite3.Connection) -> bool:
    """Whether an earlier imgfs wrote the database, so that migration steps are due. Raises sqlite3.Error."""
    program = db.execute("PRAGMA application_id").fetchone()[0]
    return program in (0, _OWN) and format_of(db) < current_format() and bool(columns(db))


def prepare(db: sqlite3.Connection, schemas: Sequence[str]) -> None:
    """Take the database to the current format, and create the tables of `schemas` that are missing.

    New tables and the marks of origin are one transaction, so a crash leaves no table without its format.
    Raises sqlite3.Error, also for a table that lacks columns after the last step.
    """
    if columns(db):
        migrate(db)
        check_columns(db, schemas)
    marks = {"application_id": _OWN, "user_version": current_format()}
    found = {word: db.execute(f"PRAGMA {word}").fetchone()[0] for word in marks}
    script = [*schemas, *(f"PRAGMA {word} = {value}" for word, value in marks.items() if found[word] != value)]
    try:
        db.executescript(";\n".join(["BEGIN IMMEDIATE", *script, "COMMIT"]))
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
