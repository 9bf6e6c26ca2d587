"""With a quota, writes are allowed while space can be freed; after that, a write is refused before it begins."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.errors import NoSpace
from imgfs.gc import quota as quota_module
from imgfs.gc.quota import PATIENCE, WriteQuota
from imgfs.gc.space import SpaceKeeper, SpaceLimits
from imgfs.oci.digest import Digest
from tests.gc.world import World

TAR = b"t" * 200_000


@pytest.fixture
def space(world: World) -> SpaceKeeper:
    return SpaceKeeper(world.content.root, world.stores)


async def put(world: World, quota: WriteQuota, ref: str, size: int) -> None:
    async with await world.ingests.open(ref) as writer:
        await quota.take(size)
        await writer.write(bytes(size))


async def test_without_a_quota_every_write_is_allowed(space: SpaceKeeper) -> None:
    quota = WriteQuota(space, SpaceLimits(free=1))
    await quota.take(1 << 50)
    await quota.check(1 << 50)


async def test_unfinished_writes_count_and_more_than_the_quota_is_refused(world: World, space: SpaceKeeper) -> None:
    limit = await space.used() + 100_000
    quota = WriteQuota(space, SpaceLimits(quota=limit))
    await put(world, quota, "one", 60_000)
    for refused in (quota.take, quota.check):
        with pytest.raises(NoSpace, match=f"60000 bytes are to come and .* left of quota_bytes, {limit}"):
            await refused(60_000)
    await quota.check(30_000)
    await quota.take(30_000)
    await world.ingests.abort("one")
    await put(world, quota, "two", 60_000)
    assert await space.used() <= limit


async def test_a_write_evicts_content_that_can_be_fetched_again(world: World, space: SpaceKeeper) -> None:
    await world.image("a.test/box:1", TAR)
    quota = WriteQuota(space, SpaceLimits(quota=await space.used() + 50_000))
    await quota.check(100_000)
    assert Digest.of(TAR) not in world.stored()
    await put(world, quota, "one", 100_000)


async def test_a_run_that_frees_too_little_is_not_repeated_for_each_write(
    world: World, space: SpaceKeeper, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    free = space.free

    async def freeing(need: int) -> object:
        tries.append(need)
        return await free(need)

    monkeypatch.setattr(space, "free", freeing)
    await world.blob(b"own" * 10_000)
    quota = WriteQuota(space, SpaceLimits(quota=await space.used() + 10))
    for _ in range(10):
        with pytest.raises(NoSpace):
            await quota.take(11)
    assert tries == [1]
    mock_clock.jump(PATIENCE * 2)
    with pytest.raises(NoSpace):
        await quota.take(11)
    assert tries == [1, 1]


async def test_the_disk_is_measured_again_after_a_chunk(
    world: World, space: SpaceKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_module, "CHUNK", 20_000)
    quota = WriteQuota(space, SpaceLimits(quota=await space.used() + 50_000))
    await quota.take(10)
    await world.blob(b"pulled meanwhile" * 3_000)
    await quota.take(15_000)
    with pytest.raises(NoSpace):
        await quota.take(15_000)
