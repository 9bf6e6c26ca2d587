"""Freeing space: when, how much, and that the background loop survives failures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import StorageFailed
from imgfs.gc.report import GarbageReport
from imgfs.gc.space import SpaceKeeper, SpaceLimits
from imgfs.oci.digest import Digest
from tests.gc.world import World

TARS = [b"%d" % number * 100_000 for number in range(4)]


@pytest.mark.parametrize(
    ("limits", "need"),
    [
        (SpaceLimits(), 0),
        (SpaceLimits(quota=1000), 0),
        (SpaceLimits(quota=999), 1 + 49),
        (SpaceLimits(free=500), 0),
        (SpaceLimits(free=600), 100 + 30),
        (SpaceLimits(free_percent=5), 0),
        (SpaceLimits(free_percent=6), 100 + 30),
        (SpaceLimits(quota=900, free=501), 100 + 45),
    ],
)
def test_the_need_is_the_excess_plus_a_twentieth_of_the_limit(limits: SpaceLimits, need: int) -> None:
    assert limits.need(used=1000, available=500, size=10_000) == need


def test_limits_are_truthy_if_any_limit_is_set() -> None:
    assert not SpaceLimits()
    assert all([SpaceLimits(quota=1), SpaceLimits(free=1), SpaceLimits(free_percent=0.5)])


async def test_garbage_is_removed_before_named_content_is_evicted(world: World) -> None:
    space = SpaceKeeper(world.content.root, world.stores)
    await world.image("a.test/box:1", *TARS[:2])
    await world.image("", *TARS[2:])
    used = await space.used()
    assert used >= 400_000
    assert not await space.enforce(SpaceLimits(quota=used))
    reports = await space.enforce(SpaceLimits(quota=used - 100))
    assert [report.mode for report in reports] == ["collect"]
    assert await space.used() <= used - 200_000
    reports = await space.enforce(SpaceLimits(quota=150_000))
    assert [report.mode for report in reports] == ["collect", "evict"]
    assert await space.used() <= 150_000
    assert len(list(world.names)) == 1


async def test_abandoned_writes_are_removed_only_when_a_limit_is_passed(world: World) -> None:
    async with await world.ingests.open("mine") as writer:
        await writer.write(bytes(100_000))
    space = SpaceKeeper(world.content.root, replace(world.stores, patience=0.0))
    await world.image("a.test/box:1", *TARS[:2])
    used = await space.used()
    await space.enforce(SpaceLimits(quota=used))
    assert "mine" in world.ingests
    await space.enforce(SpaceLimits(quota=used - 1))
    assert "mine" not in world.ingests


async def test_the_loop_expires_leases_saves_access_times_and_survives_failures(
    world: World, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    mock_clock.autojump_threshold = 0.1
    space = SpaceKeeper(world.content.root, world.stores)
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
    nursery.start_soon(space.watch, SpaceLimits(quota=1 << 40), 60.0)
    await saved.wait()
    assert trio.current_time() >= 120
    world.now = 0
    assert world.leases.get("one") is None


async def test_a_limit_that_a_writer_exceeds_is_enforced_within_seconds(
    world: World, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    mock_clock.autojump_threshold = 0.1
    space = SpaceKeeper(world.content.root, world.stores)
    await world.image("a.test/box:1", TARS[0])
    limits = SpaceLimits(quota=await space.used() + 10_000)
    nursery.start_soon(space.watch, limits, 60.0)
    await trio.sleep(30)
    await world.image("b.test/box:1", TARS[1])
    await trio.sleep(10)
    assert await space.used() > limits.quota
    async with await world.ingests.open("coming"):
        await trio.sleep(3)
        assert await space.used() <= limits.quota


async def test_a_run_that_frees_too_little_is_not_repeated_each_second(
    world: World, mock_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_clock.autojump_threshold = 0.1
    space = SpaceKeeper(world.content.root, world.stores)
    await world.blob(b"own" * 10_000)
    runs, enforce = list[float](), space.enforce

    async def enforcing(limits: SpaceLimits) -> list[GarbageReport]:
        runs.append(trio.current_time())
        return await enforce(limits)

    monkeypatch.setattr(space, "enforce", enforcing)
    async with await world.ingests.open("coming"):
        nursery.start_soon(space.watch, SpaceLimits(quota=1), 60.0)
        await trio.sleep(200)
    assert 2 < len(runs) < 7
