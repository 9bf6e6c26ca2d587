"""The database: all or nothing, durable, readers beside a writer, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from imgfs.database import RESERVE, Database, Foreign, FrozenDatabase
from imgfs.errors import NoSpace, ReadOnly, StorageFailed

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (fact TEXT PRIMARY KEY);"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    yield opened
    opened.close()


def insert(db: sqlite3.Connection, fact: str) -> None:
    db.execute("INSERT INTO facts VALUES (?)", (fact,))


def select(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT fact FROM facts ORDER BY fact")]


async def test_what_was_written_is_read_at_once_and_after_reopening(tmp_path: Path, database: Database) -> None:
    await database.write(lambda db: insert(db, "a"))
    assert await database.read(select) == ["a"]
    again = Database(tmp_path / "imgfs.db", [SCHEMA])
    assert again.read_now(select) == ["a"]
    again.close()


async def test_every_commit_is_forced_to_disk(database: Database) -> None:
    modes = await database.write(
        lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    )
    assert modes == [2, "wal"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
async def test_a_change_that_raises_leaves_nothing_and_raises_itself(database: Database, error: BaseException) -> None:
    def change(db: sqlite3.Connection) -> None:
        insert(db, "half")
        raise error

    with pytest.raises(type(error)) as caught:
        await database.write(change)
    assert caught.value is error
    await database.write(lambda db: insert(db, "whole"))
    assert await database.read(select) == ["whole"]


async def test_writers_queue_and_all_of_them_happen(database: Database) -> None:
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


async def test_a_cancelled_writer_waits_for_what_has_begun(database: Database) -> None:
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
def test_a_file_that_is_no_database_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "imgfs.db"
    path.write_bytes(content)
    with pytest.raises(StorageFailed, match="move it aside"):
        Database(path, [SCHEMA])
    assert path.read_bytes() == content


def made_by_others(path: Path, *statements: str) -> bytes:
    """A whole database that is none of this imgfs's; its bytes."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path.read_bytes()


@pytest.mark.parametrize("form", [Database, FrozenDatabase])
@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (("CREATE TABLE songs (title TEXT)",), "another program; move it aside"),
        (("CREATE TABLE facts (fact TEXT)", "PRAGMA application_id = 7"), "another program; move it aside"),
        ((SCHEMA, "PRAGMA application_id = 1768777574", "PRAGMA user_version = 99"), "format 99, this imgfs knows 1"),
    ],
)
def test_what_others_made_is_told_and_left_as_it_is(
    tmp_path: Path, form: type[Database], statements: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "imgfs.db"
    content = made_by_others(path, *statements)
    with pytest.raises(Foreign, match=words):
        form(path, [SCHEMA])
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["imgfs.db"]


def test_what_an_imgfs_made_before_there_were_formats_is_taken_over(tmp_path: Path) -> None:
    made_by_others(tmp_path / "imgfs.db", SCHEMA, "INSERT INTO facts VALUES ('old')")
    for _ in range(2):
        opened = Database(tmp_path / "imgfs.db", [SCHEMA])
        assert opened.read_now(select) == ["old"]
        assert opened.read_now(lambda db: db.execute("PRAGMA user_version").fetchone()[0]) == 1
        opened.close()


def test_a_place_where_nothing_can_be_is_a_storage_failure(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        Database(tmp_path / "nowhere" / "imgfs.db", [SCHEMA])


async def test_what_frees_room_works_on_a_full_disk(tmp_path: Path) -> None:
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


async def test_of_a_state_that_cannot_change_it_is_a_copy_with_all_that_was_committed(tmp_path: Path) -> None:
    """Copied while it is open: what was committed last is in the WAL, as after a crash."""
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    await opened.write(lambda db: insert(db, "late"))
    before = sorted(os.listdir(tmp_path))
    frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])
    assert sorted(os.listdir(tmp_path)) == before
    opened.close()
    assert frozen.read_now(select) == await frozen.read(select) == ["late"]
    with pytest.raises(ReadOnly, match="mount imgfs anew"):
        await frozen.write(lambda db: insert(db, "more"))
    frozen.close()


def test_where_there_is_none_its_copy_is_empty(tmp_path: Path) -> None:
    frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])
    assert frozen.read_now(select) == []
    assert os.listdir(tmp_path) == []
    frozen.close()


def test_what_is_no_database_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "imgfs.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageFailed, match="remount"):
        FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])


async def test_a_copy_is_of_one_moment_with_all_tables(tmp_path: Path, database: Database) -> None:
    await database.write(lambda db: insert(db, "before"))
    frozen = FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA, "CREATE TABLE IF NOT EXISTS others (other TEXT);"])
    await database.write(lambda db: insert(db, "after"))
    assert frozen.read_now(select) == ["before"]
    assert await frozen.read(lambda db: db.execute("SELECT * FROM others").fetchall()) == []
    assert (frozen.is_frozen, database.is_frozen) == (True, False)
    frozen.close()


def test_a_copy_beside_a_writer_at_work_is_of_one_moment(tmp_path: Path, database: Database) -> None:
    """Each transaction counts on in one of ten pages, and what was written ahead goes to the file all the time."""
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
