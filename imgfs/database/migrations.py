"""The formats of the database: the step from each one to the next, and how to read the copies that old releases wrote.

A format says which tables exist and what their rows mean. The database stores its number in `PRAGMA user_version`, and
the copy of its rows (rescue/) in its head. Format 0 is every database that was made before formats had numbers.

To change a table that a release has shipped: append a step to STEPS, so that the format grows by one; keep the old
format's entry in COPIED and add the new one; store a state directory of the old release in tests/database/releases/.
A new table needs no step: the room that owns it declares it with CREATE TABLE IF NOT EXISTS.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import Any
from urllib.parse import quote_from_bytes

from imgfs.database.failures import check, damage


def columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    """The columns of each table, without those of SQLite itself. Raises sqlite3.Error."""
    query = (
        "SELECT one.name, it.name FROM sqlite_schema one JOIN pragma_table_info(one.name) it "
        "WHERE one.type = 'table' AND one.name NOT LIKE 'sqlite_%'"
    )
    found: dict[str, set[str]] = {}
    for table, column in db.execute(query):
        found.setdefault(table, set()).add(column)
    return found


def declared(schemas: Sequence[str]) -> dict[str, set[str]]:
    """The tables that `schemas` create, and their columns."""
    with closing(sqlite3.connect(":memory:")) as db:
        for schema in schemas:
            db.executescript(schema)
        return columns(db)


def check_columns(db: sqlite3.Connection, schemas: Sequence[str]) -> None:
    """Raise sqlite3.DatabaseError if an existing table of `schemas` lacks a column."""
    found = columns(db)
    for table, wanted in declared(schemas).items():
        if missing := sorted(wanted - found.get(table, wanted)):
            raise damage(f"table {table} has no column {', '.join(missing)}")


Step = Callable[[sqlite3.Connection], None]


def _to_1(db: sqlite3.Connection) -> None:
    """Columns that were added, or renamed, while databases had no format: a file has some of these changes already."""
    found = columns(db)
    if "size" not in found.get("sources", {"size"}):
        db.execute("ALTER TABLE sources ADD COLUMN size INTEGER")
        db.execute("ALTER TABLE sources ADD COLUMN media_type TEXT")
        if "descriptors" in found:
            told = "SELECT {} FROM descriptors WHERE descriptors.digest = sources.digest"
            size, media_type = told.format("size"), told.format("media_type")
            db.execute(f"UPDATE sources SET size = ({size}), media_type = ({media_type})")
    if "proven" not in found.get("descriptors", {"proven"}):
        db.execute("ALTER TABLE descriptors RENAME TO descriptors_0")
        db.execute(
            "CREATE TABLE descriptors (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL, "
            "proven INTEGER NOT NULL) WITHOUT ROWID"
        )
        db.execute("INSERT INTO descriptors SELECT digest, size, media_type, 0 FROM descriptors_0")
        db.execute("DROP TABLE descriptors_0")
    if "snapshot" in found.get("snapshot_labels", ()):
        db.execute("ALTER TABLE snapshot_labels RENAME COLUMN snapshot TO subject")


STEPS: Sequence[Step] = (_to_1,)
"""Step N takes a database from format N to N + 1, in one transaction. A database may lack any table, because a library
creates only its own tables."""


@dataclass(frozen=True, slots=True)
class CopiedFormat:
    """The tables of one format that the copy holds: the statements that create them, and the columns of a row.

    The statements are those of the release, and never change. A table without an entry in `columns` is copied whole.
    """

    schema: str
    columns: Mapping[str, tuple[str, ...]]


_LABELS = "(subject TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (subject, key)) WITHOUT ROWID;"

COPIED: Mapping[int, CopiedFormat] = {
    1: CopiedFormat(
        f"""
        CREATE TABLE names (name TEXT PRIMARY KEY, digest TEXT NOT NULL, updated INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE content_labels {_LABELS}
        CREATE TABLE user_snapshots (
            number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name BLOB NOT NULL, parent BLOB NOT NULL,
            used INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, bytes INTEGER, inodes INTEGER
        );
        CREATE TABLE snapshot_labels {_LABELS}
        CREATE TABLE snapshots (
            number INTEGER PRIMARY KEY AUTOINCREMENT, chain_id TEXT NOT NULL UNIQUE, parent TEXT NOT NULL,
            diff_id TEXT NOT NULL, blob TEXT NOT NULL, created INTEGER NOT NULL
        );
        CREATE TABLE leases (id BLOB PRIMARY KEY, created INTEGER NOT NULL, expires INTEGER) WITHOUT ROWID;
        CREATE TABLE lease_links (
            lease BLOB NOT NULL, name BLOB NOT NULL, resource BLOB NOT NULL, PRIMARY KEY (lease, name)
        ) WITHOUT ROWID;
        """,
        {"snapshots": ("chain_id", "parent", "diff_id", "blob", "created")},
    ),
}
"""By format; the first release that wrote a copy had format 1."""

_TYPES = {"INTEGER": int, "TEXT": str, "BLOB": bytes, "REAL": float}


def current_format() -> int:
    """The format that this imgfs writes."""
    return len(STEPS)


def format_of(db: sqlite3.Connection) -> int:
    """The format that the database has. Raises sqlite3.Error."""
    return db.execute("PRAGMA user_version").fetchone()[0]


def migrate(db: sqlite3.Connection) -> None:
    """Take the database from its format to the current one. Needs `isolation_level=None`.

    Each step is one transaction, and the new format is written in it, so a crash leaves the database before or after a
    step and the next start goes on from there. Raises sqlite3.Error; then the step that failed has changed nothing.
    """
    for number in range(format_of(db), current_format()):
        with transaction(db):
            STEPS[number](db)
            db.execute(f"PRAGMA user_version = {number + 1}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Generator[None]:
    """Commit the block's changes, or roll all of them back if it raises. Needs `isolation_level=None`."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # on a full disk SQLite has rolled back already
            db.execute("ROLLBACK")
        raise


def empty_of_format(form: int) -> sqlite3.Connection:
    """An in-memory database with the empty tables that the copy of format `form` fills. The caller closes it."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(f"{COPIED[form].schema}; PRAGMA user_version = {form};")
    return db


def copied_columns(db: sqlite3.Connection, form: int) -> dict[str, tuple[tuple[str, ...], Any]]:
    """For each table of `empty_of_format`: the columns of a copied row, and the row's type."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for table in columns(db):
        types: dict[str, Any] = {}
        for _, name, kind, is_required, _, key in db.execute(f"PRAGMA table_info({table})"):
            types[name] = _TYPES[kind] if is_required or key else _TYPES[kind] | None
        names = COPIED[form].columns.get(table, tuple(types))
        found[table] = names, GenericAlias(tuple, tuple(types[name] for name in names))
    return found


def salvage_older(path: Path) -> tuple[sqlite3.Connection, bool]:
    """An in-memory database in the current format with the tables of an older, damaged one that are whole.

    Also returns whether every table was whole. Each table is created by the statement in the file itself, so that it
    has the columns of its own format. The caller closes the connection. Raises sqlite3.Error.
    """
    db = sqlite3.connect(":memory:", isolation_level=None, uri=True)
    try:
        db.execute("ATTACH ? AS old", (f"file:{quote_from_bytes(bytes(path))}?mode=ro",))
        form = db.execute("PRAGMA old.user_version").fetchone()[0]
        copied = [_copy_table(db, *row) for row in db.execute(_TABLES).fetchall()]
        db.execute("DETACH old")
        db.execute(f"PRAGMA user_version = {form}")
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db, all(copied)


_TABLES = "SELECT name, sql FROM old.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


def _copy_table(db: sqlite3.Connection, name: str, statement: str) -> bool:
    """Copy a table of the attached database `old`, unless it is damaged; returns whether it was copied."""
    try:
        check(db, name, schema="old")
        db.execute(statement)
        db.execute(f'INSERT INTO main."{name}" SELECT * FROM old."{name}"')
    except sqlite3.Error:
        return False
    return True


def migrated_copy(source: sqlite3.Connection) -> sqlite3.Connection:
    """An in-memory copy of a database in the current format. The caller closes it. Raises sqlite3.Error."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        source.backup(db)
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db
