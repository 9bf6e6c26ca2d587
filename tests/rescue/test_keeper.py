"""The copy is written some time after a change and at the end, but never from a damaged database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imgfs.assembly.tables import TABLES
from imgfs.database.database import Database
from imgfs.database.failures import Damaged
from imgfs.images.names import Names
from imgfs.oci.digest import Digest
from imgfs.rescue.keeper import DELAY, HOUR, Keeper
from imgfs.rescue.row_copy import FILE, newest

ONE = Digest.of(b"1")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imgfs.db", TABLES.schemas)
    yield opened
    opened.close()


@pytest.fixture
def keeper(tmp_path: Path, database: Database) -> Keeper:
    return Keeper(tmp_path, database, TABLES.kept)


def copied(state: Path) -> list[str]:
    found = newest(state, TABLES.kept)
    return [row[0] for row in found.rows["names"]] if found else []


async def test_a_saved_copy_has_the_rows_of_the_database(tmp_path: Path, database: Database, keeper: Keeper) -> None:
    await Names(database).create("a", ONE)
    assert await keeper.save()
    assert copied(tmp_path) == ["a"]
    assert not await keeper.save()


async def passed(clock: MockClock, seconds: float) -> None:
    """Advance the clock for tasks that already wait."""
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` is true. Threads take real time, so the mock clock cannot be used."""
    for _ in range(10_000):
        if condition():
            return
        await trio.to_thread.run_sync(lambda: None)
    raise AssertionError("waited in vain")


async def test_a_change_is_copied_after_the_delay(
    tmp_path: Path, database: Database, keeper: Keeper, mock_clock: MockClock
) -> None:
    names = Names(database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.watch)
        await trio.testing.wait_all_tasks_blocked()
        await passed(mock_clock, DELAY + 1)
        await until((tmp_path / FILE).exists)
        await keeper.save()  # returns after the save of the watch has ended, so the watch waits for a change again
        await names.create("a", ONE)
        await passed(mock_clock, DELAY - 2)
        assert copied(tmp_path) == []
        await passed(mock_clock, 3)
        await until(lambda: copied(tmp_path) == ["a"])
        await keeper.save()  # as above
        (tmp_path / FILE).unlink()
        await passed(mock_clock, HOUR + 1)
        await until((tmp_path / FILE).exists)
        nursery.cancel_scope.cancel()


async def test_a_damaged_database_does_not_replace_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "imgfs.db"
    database = Database(path, TABLES.schemas)
    await Names(database).create("a", ONE)
    await Keeper(tmp_path, database, TABLES.kept).save()
    database.close()
    before = (tmp_path / FILE).read_bytes()
    opened = Database(path, TABLES.schemas)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff")
    with pytest.raises(Damaged):
        await Keeper(tmp_path, opened, TABLES.kept).save()
    opened.close()
    assert (tmp_path / FILE).read_bytes() == before
