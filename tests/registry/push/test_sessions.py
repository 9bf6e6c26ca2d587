"""Uploads that continue after a restart of the daemon: what is stored, for how long, and when it is deleted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.database.database import Database
from imgfs.database.frozen import FrozenDatabase
from imgfs.errors import AccessDenied
from imgfs.oci.digest import Digest
from imgfs.registry.push.sessions import KEPT_MAX, KEPT_SECONDS, SCHEMA, Sessions, UploadTarget
from imgfs.testing.faults import status
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import CHUNK, LARGE, REPOSITORY, SMALL, Bytes, Pushing

TARGET = UploadTarget("https://registry.example", REPOSITORY, Digest.of(LARGE))
URL = "https://registry.example/v2/x?canary"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "imgfs.db", [SCHEMA])) as database:
        yield database


def kept_at(when: float, db: sqlite3.Connection) -> None:
    db.execute("UPDATE uploads SET kept = ?", (when,))


def rows(database: Database) -> list[tuple[str, str, str, str]]:
    return database.read_now(lambda db: db.execute("SELECT base, repository, digest, url FROM uploads").fetchall())


async def broken_off(clock: MockClock, fake: PushRegistry, database: Database, blob: Bytes) -> None:
    """Let the registry refuse the last request of an upload, and end the daemon."""
    fake.fault(status(403), "PUT", times=1)
    pushing = Pushing(clock, fake, database=database)
    async with pushing.registry:
        with pytest.raises(AccessDenied):
            await pushing.upload(blob)
    fake.log.clear()


async def test_an_upload_goes_on_after_a_restart_and_is_forgotten_when_it_is_over(
    mock_clock: MockClock, fake: PushRegistry, database: Database
) -> None:
    blob = Bytes(LARGE)
    await broken_off(mock_clock, fake, database, blob)
    assert [row[:3] for row in rows(database)] == [(fake.url, REPOSITORY, blob.descriptor.digest)]
    session = next(iter(fake.sessions.values()))
    del session.data[2 * CHUNK :]
    pushing = Pushing(mock_clock, fake, database=database)
    async with pushing.registry:
        await pushing.upload(blob)
    assert fake.asked("upload")[:2] == ["GET upload", "PATCH upload"]
    assert fake.sent() == len(LARGE) - 2 * CHUNK
    assert fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert rows(database) == []


async def test_one_that_the_registry_has_forgotten_is_forgotten(
    mock_clock: MockClock, fake: PushRegistry, database: Database
) -> None:
    blob = Bytes(LARGE)
    await broken_off(mock_clock, fake, database, blob)
    fake.sessions.clear()
    fake.fault(status(403), "POST", times=1)
    pushing = Pushing(mock_clock, fake, database=database)
    async with pushing.registry:
        with pytest.raises(AccessDenied):
            await pushing.upload(blob)
        assert fake.asked("upload") == ["GET upload", "POST upload"]
        assert rows(database) == []
        await pushing.upload(blob)
    assert fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_what_goes_in_one_request_is_not_written_down(
    mock_clock: MockClock, fake: PushRegistry, database: Database
) -> None:
    await broken_off(mock_clock, fake, database, Bytes(SMALL))
    assert rows(database) == []


async def test_after_an_hour_it_is_not_gone_on_with(database: Database) -> None:
    await Sessions(database).keep(TARGET, URL, lasting=True)
    assert await Sessions(database).get(TARGET) == URL
    for age in (KEPT_SECONDS + 1, -60):
        await database.write(partial(kept_at, time.time() - age))
        assert await Sessions(database).get(TARGET) is None
    other = UploadTarget(TARGET.base, "team/other", TARGET.digest)
    await Sessions(database).keep(other, URL, lasting=True)
    assert [row[1] for row in rows(database)] == ["team/other"]


async def test_an_upload_that_nobody_took_is_forgotten_after_an_hour(mock_clock: MockClock) -> None:
    sessions = Sessions()
    assert sessions.spare(TARGET, URL)
    assert not sessions.spare(TARGET, "another")
    assert sessions.take(TARGET) == URL
    assert sessions.take(TARGET) == ""
    assert sessions.spare(TARGET, URL)
    mock_clock.jump(KEPT_SECONDS)
    assert sessions.spare(TARGET, "another")
    mock_clock.jump(KEPT_SECONDS)
    assert sessions.take(TARGET) == ""


async def test_the_latest_are_kept(database: Database) -> None:
    sessions = Sessions(database)
    for n in range(KEPT_MAX + 5):
        await sessions.keep(UploadTarget(TARGET.base, f"team/{n:03}", TARGET.digest), URL, lasting=True)
    assert sorted(row[1] for row in rows(database)) == [f"team/{n:03}" for n in range(5, KEPT_MAX + 5)]


async def test_where_nothing_can_be_written_down_the_daemon_remembers(tmp_path: Path, database: Database) -> None:
    with closing(FrozenDatabase(tmp_path / "imgfs.db", [SCHEMA])) as frozen:
        sessions = Sessions(frozen)
        await sessions.keep(TARGET, URL, lasting=True)
        assert await sessions.get(TARGET) == URL
        await sessions.drop(TARGET)
        assert await sessions.get(TARGET) is None
    with closing(Database(tmp_path / "none.db", [])) as without:
        assert await Sessions(without).get(TARGET) is None
