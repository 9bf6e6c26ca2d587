"""Leases: durable, found by ID, and removed when they have expired and have no holder."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from imgfs.database.database import Database
from imgfs.errors import AlreadyExists, Invalid, NoSpace, NotFound
from imgfs.leases import clock
from imgfs.leases import store as leases
from imgfs.leases.resource import Resource, ResourceKind, content
from imgfs.leases.store import Leases
from imgfs.oci.digest import Digest

DIGEST = Digest.of(b"thing")
THING = content(DIGEST)


class Office:
    """A lease store with a database and a settable clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100
        self.open()

    def open(self) -> Leases:
        self.database = Database(self.path / "imgfs.db", [leases.SCHEMA, clock.SCHEMA])
        self.leases = Leases(self.database, lambda: self.now)
        return self.leases

    def reopen(self) -> Leases:
        self.database.close()
        return self.open()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.database.close()


async def test_leases_and_links_survive_a_restart(office: Office) -> None:
    ref = Resource(ResourceKind.INGEST, "layer/1")
    await office.leases.create("one", expires=500)
    await office.leases.add("one", "it", THING)
    await office.leases.add("one", "write", ref)
    await office.leases.create("two")
    await office.leases.set_expiry("one", 600)
    again = office.reopen()
    assert [one.id for one in again] == ["one", "two"]
    assert again.stat("one").links == {"it": THING, "write": ref}
    assert (again.stat("one").created, again.stat("one").expires, again.stat("two").expires) == (100, 600, None)
    await again.remove("one", "write")
    await again.delete("two")
    again = office.reopen()
    assert list(again.resources()) == [THING]
    assert len(again) == 1


async def test_an_expired_lease_pins_nothing_and_its_id_can_be_used_again(office: Office) -> None:
    await office.leases.create("one", expires=200)
    await office.leases.add("one", "it", THING)
    office.now = 200
    assert office.leases.get("one") is None
    assert not list(office.leases)
    assert not list(office.leases.resources())
    with pytest.raises(NotFound):
        await office.leases.add("one", "more", THING)
    await office.leases.create("one", expires=300)
    assert not office.leases.stat("one").links
    assert await office.leases.expire() == []
    office.now = 300
    assert await office.leases.expire() == ["one"]
    office.now = 0
    assert not len(office.reopen())


async def test_a_lease_does_not_expire_under_a_live_holder(office: Office) -> None:
    await office.leases.create("one", expires=200)
    await office.leases.add("one", "it", THING)
    with office.leases.held("one"), office.leases.held("one"):
        office.now = 900
        assert await office.leases.expire() == []
        assert list(office.leases.resources()) == [THING]
    assert not list(office.leases.resources())
    assert await office.leases.expire() == ["one"]
    with pytest.raises(NotFound), office.leases.held("one"):
        pass


async def test_a_held_lease_can_be_deleted_while_a_link_is_added(office: Office) -> None:
    await office.leases.create("one")
    refused: list[str] = []

    async def add() -> None:
        try:
            await office.leases.add("one", "it", THING)
        except NotFound as error:
            refused.append(error.message)

    with office.leases.held("one"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.leases.delete, "one")
            nursery.start_soon(add)
    assert office.leases.get("one") is None
    assert not list(office.leases.resources())
    assert not len(office.reopen())


async def test_an_expiry_that_is_extended_during_the_sweep_is_respected(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease expires while the row of the new expiry is written, and a sweep runs before the write returns."""
    await office.leases.create("one", expires=200)
    await office.leases.add("one", "it", THING)
    write, expired = office.database.write, list[str]()

    async def slow(change: Callable[[sqlite3.Connection], Any], *, frees: bool = False) -> object:
        result = await write(change, frees=frees)
        if not frees:
            office.now = 200
            expired.extend(await office.leases.expire())
        return result

    monkeypatch.setattr(office.database, "write", slow)
    await office.leases.set_expiry("one", 900)
    assert expired == []
    assert list(office.leases.resources()) == list(office.reopen().resources()) == [THING]


async def test_errors_name_an_existing_or_missing_lease_or_link(office: Office) -> None:
    await office.leases.create("one")
    await office.leases.add("one", "it", THING)
    with pytest.raises(AlreadyExists):
        await office.leases.create("one")
    with pytest.raises(AlreadyExists):
        await office.leases.add("one", "it", THING)
    for attempt in (office.leases.delete("no"), office.leases.remove("one", "no"), office.leases.set_expiry("no", 1)):
        with pytest.raises(NotFound):
            await attempt


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a\n", "x" * 256, "\ud800"])
async def test_a_lease_id_must_be_one_file_name(office: Office, id: str) -> None:
    with pytest.raises(Invalid):
        await office.leases.create(id)


async def test_only_one_of_two_concurrent_creators_of_a_lease_succeeds(office: Office) -> None:
    outcomes: list[bool] = []

    async def create() -> None:
        try:
            await office.leases.create("one")
            outcomes.append(True)
        except AlreadyExists:
            outcomes.append(False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        nursery.start_soon(create)
    assert sorted(outcomes) == [False, True]


async def test_a_link_that_cannot_be_stored_pins_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    await office.leases.create("one")

    async def full(_: object) -> None:
        assert list(office.leases.resources()) == [THING]  # pinned before the write begins
        raise NoSpace("the disk is full")

    monkeypatch.setattr(office.database, "write", full)
    with pytest.raises(NoSpace):
        await office.leases.add("one", "it", THING)
    assert not list(office.leases.resources())


async def test_every_change_of_pins_changes_the_version(office: Office) -> None:
    await office.leases.create("one")
    before = office.leases.version
    await office.leases.add("one", "it", THING)
    assert office.leases.version != before
