"""A frozen database: a consistent in-memory copy of the file, which is never written."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest
import trio

from imgfs.database.database import Database
from imgfs.database.frozen import FrozenDatabase
from imgfs.errors import ReadOnly, StorageFailed
from tests.database.facts import SCHEMA, insert, select


async def test_a_frozen_database_is_a_copy_with_every_committed_row(tmp_path: Path) -> None:
    """The source database is open, so its last commits are in the WAL, as after a crash."""
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    await opened.write(lambda db: insert(db, "late"))
    before = sorted(os.listdir(tmp_path))
    frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])
    assert sorted(os.listdir(tmp_path)) == before
    opened.close()
    assert frozen.read_now(select) == await frozen.read(select) == ["late"]
    with pytest.raises(ReadOnly, match="mount imgfs again"):
        await frozen.write(lambda db: insert(db, "more"))
    frozen.close()


def test_without_a_database_file_the_frozen_database_is_empty(tmp_path: Path) -> None:
    frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])
    assert frozen.read_now(select) == []
    assert os.listdir(tmp_path) == []
    frozen.close()


def test_a_file_that_is_not_a_database_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "imgfs.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageFailed, match="remount"):
        FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])


@pytest.mark.parametrize("form", [Database, FrozenDatabase])
def test_a_failed_open_leaves_no_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: type[Database]
) -> None:
    (tmp_path / "imgfs.db").write_bytes(b"no database" * 1000)
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: made.append(connect(*args, **options)) or made[-1])
    with pytest.raises(StorageFailed):
        form(tmp_path / "imgfs.db", [SCHEMA])
    assert made
    for connection in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


async def test_a_copy_does_not_see_later_commits_and_has_all_tables(tmp_path: Path, database: Database) -> None:
    await database.write(lambda db: insert(db, "before"))
    frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA, "CREATE TABLE IF NOT EXISTS others (other TEXT);"])
    await database.write(lambda db: insert(db, "after"))
    assert frozen.read_now(select) == ["before"]
    assert await frozen.read(lambda db: db.execute("SELECT * FROM others").fetchall()) == []
    assert (frozen.is_frozen, database.is_frozen) == (True, False)
    frozen.close()


def test_a_copy_made_during_writes_is_consistent(tmp_path: Path, database: Database) -> None:
    """Each transaction replaces one of ten rows by the next number, and the WAL is checkpointed again and again."""
    rows = 10

    def count(db: sqlite3.Connection, number: int) -> None:
        db.execute("DELETE FROM facts WHERE rowid = ?", (number % rows + 1,))
        fact = f"{number} {'x' * 3000}"
        db.execute("INSERT INTO facts (rowid, fact) VALUES (?, ?)", (number % rows + 1, fact))

    async def write() -> None:
        for number in range(300):
            await database.write(lambda db, number=number: count(db, number))
            if number % 3 == 0:
                await database.read(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    writer = threading.Thread(target=trio.run, args=(write,))
    writer.start()
    moments: set[int] = set()
    while writer.is_alive():
        frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])
        found = sorted(int(row.split()[0]) for row in frozen.read_now(select))
        last = found[-1] if found else -1
        assert found == list(range(max(0, last - rows + 1), last + 1))
        moments.add(last)
        frozen.close()
    writer.join()
    assert moments
