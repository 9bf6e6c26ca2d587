"""Connections to the file: one that may change it, one that only looks."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote_from_bytes

from imgfs.database.format import check_origin


def connect(path: Path, tables: Collection[str]) -> sqlite3.Connection:
    """A connection whose every commit is durable, and whose readers wait for no writer. The caller closes it.

    Raises sqlite3.Error, and Foreign for a database that is not of this imgfs: that one is left as it is.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        check_origin(connection, path, tables)  # first: the next line changes the file
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.text_factory = decoded
    except BaseException:
        connection.close()
        raise
    return connection


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, beside a daemon or without one. The caller closes it. Raises sqlite3.Error."""
    return sqlite3.connect(f"file:{quote_from_bytes(bytes(path))}?mode=ro", uri=True, timeout=10)


def decoded(data: bytes) -> str:
    """Text as SQLite has it: what is none harms only who compares it, and not everybody who reads the table."""
    return data.decode(errors="surrogateescape")
