"""The database: writes are atomic and durable, readers do not wait for a writer, and SQLite errors are converted."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from imgfs.database.database import RESERVE, Database
from imgfs.errors import NoSpace, StorageFailed
from tests.database.facts import SCHEMA, insert, select


async def test_a_committed_row_is_read_at_once_and_after_reopening(tmp_path: Path, database: Database) -> None:
    await database.write(lambda db: insert(db, "a"))
    assert await database.read(select) == ["a"]
    again = Database(tmp_path / "imgfs.db", [SCHEMA])
    assert again.read_now(select) == ["a"]
    again.close()


async def test_every_commit_is_fsynced(database: Database) -> None:
    modes = await database.write(
        lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    )
    assert modes == [2, "wal"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
async def test_a_write_that_raises_is_rolled_back_and_its_error_is_raised(
    database: Database, error: BaseException
) -> None:
    def change(db: sqlite3.Connection) -> None:
        insert(db, "half")
        raise error

    with pytest.raises(type(error)) as caught:
        await database.write(change)
    assert caught.value is error
    await database.write(lambda db: insert(db, "whole"))
    assert await database.read(select) == ["whole"]


async def test_concurrent_writers_queue_and_all_commit(database: Database) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(database.write, lambda db, number=number: insert(db, f"{number:02}"))
    assert len(await database.read(select)) == 20


async def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    seen: list[list[str]] = []

    def change(db: sqlite3.Connection) -> None:
        insert(db, "coming")
        seen.append(trio.from_thread.run(database.read, select))

    await database.write(change)
    assert seen == [[]]


async def test_a_cancelled_writer_waits_for_its_running_transaction(database: Database) -> None:
    with trio.CancelScope() as scope:
        await database.write(lambda db: (insert(db, "a"), trio.from_thread.run_sync(scope.cancel)))
    assert await database.read(select) == ["a"]


async def test_a_broken_statement_is_a_storage_failure(tmp_path: Path, database: Database) -> None:
    with pytest.raises(StorageFailed, match=r"imgfs\.db: no such table"):
        await database.read(lambda db: db.execute("SELECT * FROM gone"))
    with pytest.raises(StorageFailed, match=r"imgfs\.db"):
        await database.write(lambda db: db.execute("INSERT INTO gone VALUES (1)"))


async def test_a_full_disk_is_no_space_and_the_next_write_works(database: Database) -> None:
    pages = await database.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await database.write(lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchall())
    with pytest.raises(NoSpace, match="make room"):
        await database.write(lambda db: insert(db, "x" * 100_000))
    await database.write(lambda db: insert(db, "small"))
    assert await database.read(select) == ["small"]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_the_error_of_a_file_that_is_not_a_database_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "imgfs.db"
    path.write_bytes(content)
    with pytest.raises(StorageFailed, match="move it aside"):
        Database(path, [SCHEMA])
    assert path.read_bytes() == content


def test_a_database_path_that_cannot_exist_is_a_storage_failure(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        Database(tmp_path / "nowhere" / "imgfs.db", [SCHEMA])


async def test_a_write_that_frees_space_works_on_a_full_disk(tmp_path: Path) -> None:
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    reserve = tmp_path / "imgfs.db.reserve"
    assert reserve.stat().st_blocks * 512 >= RESERVE

    def full_while_reserved(db: sqlite3.Connection) -> None:
        if reserve.exists():
            raise NoSpace("the disk is full")
        insert(db, "freed")

    with pytest.raises(NoSpace):
        await opened.write(full_while_reserved)
    await opened.write(full_while_reserved, frees=True)
    assert await opened.read(select) == ["freed"]
    assert reserve.stat().st_blocks * 512 >= RESERVE
    opened.close()
