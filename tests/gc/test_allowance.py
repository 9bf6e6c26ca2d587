"""Under a quota users' writes are refused before they are taken, once nothing can be fetched again any more."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.errors import NoSpace
from imgfs.gc import allowance
from imgfs.gc.allowance import PATIENCE, Allowance
from imgfs.gc.limits import Limits
from imgfs.gc.room import Room
from imgfs.oci.digest import Digest
from tests.gc.world import World

TAR = b"t" * 200_000


@pytest.fixture
def room(world: World) -> Room:
    return Room(world.content.root, world.stores)


async def put(world: World, allowed: Allowance, ref: str, size: int) -> None:
    async with await world.ingests.open(ref) as writer:
        await allowed.take(size)
        await writer.write(bytes(size))


async def test_without_a_quota_all_may_come(room: Room) -> None:
    allowed = Allowance(room, Limits(free=1))
    await allowed.take(1 << 50)
    await allowed.check(1 << 50)


async def test_what_is_unfinished_counts_and_what_would_be_too_much_is_refused(world: World, room: Room) -> None:
    quota = await room.used() + 100_000
    allowed = Allowance(room, Limits(quota=quota))
    await put(world, allowed, "one", 60_000)
    for refused in (allowed.take, allowed.check):
        with pytest.raises(NoSpace, match=f"60000 bytes are to come and .* left of quota_bytes, {quota}"):
            await refused(60_000)
    await allowed.check(30_000)
    await allowed.take(30_000)
    await world.ingests.abort("one")
    await put(world, allowed, "two", 60_000)
    assert await room.used() <= quota


async def test_room_is_made_with_what_can_be_fetched_again(world: World, room: Room) -> None:
    await world.image("a.test/box:1", TAR)
    allowed = Allowance(room, Limits(quota=await room.used() + 50_000))
    await allowed.check(100_000)
    assert Digest.of(TAR) not in world.stored()
    await put(world, allowed, "one", 100_000)


async def test_where_that_is_in_vain_it_is_not_tried_for_each_write(
    world: World, room: Room, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    free = room.free

    async def freeing(need: int) -> object:
        tries.append(need)
        return await free(need)

    monkeypatch.setattr(room, "free", freeing)
    await world.blob(b"own" * 10_000)
    allowed = Allowance(room, Limits(quota=await room.used() + 10))
    for _ in range(10):
        with pytest.raises(NoSpace):
            await allowed.take(11)
    assert tries == [1]
    mock_clock.jump(PATIENCE * 2)
    with pytest.raises(NoSpace):
        await allowed.take(11)
    assert tries == [1, 1]


async def test_the_disk_is_looked_at_again_after_so_many_bytes(
    world: World, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "CHUNK", 20_000)
    allowed = Allowance(room, Limits(quota=await room.used() + 50_000))
    await allowed.take(10)
    await world.blob(b"pulled meanwhile" * 3_000)
    await allowed.take(15_000)
    with pytest.raises(NoSpace):
        await allowed.take(15_000)
