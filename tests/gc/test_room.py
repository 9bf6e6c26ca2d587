"""Making room: when, how much, and that the loop outlives what fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import StorageFailed
from imgfs.gc.limits import Limits
from imgfs.gc.report import Report
from imgfs.gc.room import Room
from imgfs.oci.digest import Digest
from tests.gc.world import World

TARS = [b"%d" % number * 100_000 for number in range(4)]


@pytest.mark.parametrize(
    ("limits", "need"),
    [
        (Limits(), 0),
        (Limits(quota=1000), 0),
        (Limits(quota=999), 1 + 49),
        (Limits(free=500), 0),
        (Limits(free=600), 100 + 30),
        (Limits(free_percent=5), 0),
        (Limits(free_percent=6), 100 + 30),
        (Limits(quota=900, free=501), 100 + 45),
    ],
)
def test_how_much_must_go(limits: Limits, need: int) -> None:
    assert limits.need(used=1000, available=500, size=10_000) == need


def test_limits_are_true_where_there_is_one() -> None:
    assert not Limits()
    assert all([Limits(quota=1), Limits(free=1), Limits(free_percent=0.5)])


async def test_garbage_goes_before_what_is_named(world: World) -> None:
    room = Room(world.content.root, world.stores)
    await world.image("a.test/box:1", *TARS[:2])
    await world.image("", *TARS[2:])
    used = await room.used()
    assert used >= 400_000
    assert not await room.make(Limits(quota=used))
    reports = await room.make(Limits(quota=used - 100))
    assert [report.mode for report in reports] == ["collect"]
    assert await room.used() <= used - 200_000
    reports = await room.make(Limits(quota=150_000))
    assert [report.mode for report in reports] == ["collect", "evict"]
    assert await room.used() <= 150_000
    assert len(list(world.names)) == 1


async def test_abandoned_writes_go_only_when_room_is_short(world: World) -> None:
    async with await world.ingests.open("mine") as writer:
        await writer.write(bytes(100_000))
    room = Room(world.content.root, replace(world.stores, patience=0.0))
    await world.image("a.test/box:1", *TARS[:2])
    used = await room.used()
    await room.make(Limits(quota=used))
    assert "mine" in world.ingests
    await room.make(Limits(quota=used - 1))
    assert "mine" not in world.ingests


async def test_the_loop_expires_leases_writes_uses_down_and_outlives_failures(
    world: World, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    mock_clock.autojump_threshold = 0.1
    room = Room(world.content.root, world.stores)
    await world.leases.create("one", expires=1_001)
    world.now = 1 << 62
    world.clock.touched(Digest.of(b"x"))
    saved, save, outcomes = trio.Event(), world.clock.save, iter([StorageFailed("disk: Input/output error"), None])

    async def saving() -> None:
        if error := next(outcomes, None):
            raise error
        await save()
        saved.set()

    monkeypatch.setattr(world.clock, "save", saving)
    nursery.start_soon(room.watch, Limits(quota=1 << 40), 60.0)
    await saved.wait()
    assert trio.current_time() >= 120
    world.now = 0
    assert world.leases.get("one") is None


async def test_a_limit_that_is_passed_while_bytes_come_in_is_not_left_for_a_minute(
    world: World, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    mock_clock.autojump_threshold = 0.1
    room = Room(world.content.root, world.stores)
    await world.image("a.test/box:1", TARS[0])
    limits = Limits(quota=await room.used() + 10_000)
    nursery.start_soon(room.watch, limits, 60.0)
    await trio.sleep(30)
    await world.image("b.test/box:1", TARS[1])
    await trio.sleep(10)
    assert await room.used() > limits.quota
    async with await world.ingests.open("coming"):
        await trio.sleep(3)
        assert await room.used() <= limits.quota


async def test_where_no_room_can_be_made_that_is_not_tried_each_second(
    world: World, mock_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_clock.autojump_threshold = 0.1
    room = Room(world.content.root, world.stores)
    await world.blob(b"own" * 10_000)
    made, make = list[float](), room.make

    async def making(limits: Limits) -> list[Report]:
        made.append(trio.current_time())
        return await make(limits)

    monkeypatch.setattr(room, "make", making)
    async with await world.ingests.open("coming"):
        nursery.start_soon(room.watch, Limits(quota=1), 60.0)
        await trio.sleep(200)
    assert 2 < len(made) < 7
