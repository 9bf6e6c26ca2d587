"""A test table with one column, and functions that insert and select its rows."""

from __future__ import annotations

import sqlite3

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (fact TEXT PRIMARY KEY);"


def insert(db: sqlite3.Connection, fact: str) -> None:
    db.execute("INSERT INTO facts VALUES (?)", (fact,))


def select(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT fact FROM facts ORDER BY fact")]
