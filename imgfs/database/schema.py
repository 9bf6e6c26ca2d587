"""Which tables there are, with which columns: those that rooms declare, and those that a file has."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

from imgfs.database.damage import damage


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
    """The tables that `schemas` make, and their columns."""
    with closing(sqlite3.connect(":memory:")) as db:
        for schema in schemas:
            db.executescript(schema)
        return columns(db)


def check_columns(db: sqlite3.Connection, schemas: Sequence[str]) -> None:
    """Raise sqlite3.DatabaseError where a table of `schemas` that is there has not all of its columns."""
    found = columns(db)
    for table, wanted in declared(schemas).items():
        if missing := sorted(wanted - found.get(table, wanted)):
            raise damage(f"table {table} has no column {', '.join(missing)}")
