"""Blobs over an unreliable network, and from a registry that sends wrong ranges and lengths."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.aio.patience import one_request
from imgfs.errors import ImgfsError, RegistryFailed, TimedOut, Unreachable, VerificationFailed
from imgfs.registry.limits import Limits
from imgfs.testing import faults
from imgfs.testing.faults import Action
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, REPOSITORY, Scene

LATE = len(BLOB) - 100


@pytest.fixture
async def strict(mock_clock: MockClock, fake: FakeRegistry):
    """A scene in which at most half of a blob may be discarded."""
    scene = Scene(mock_clock, fake, Limits(discard=0))
    async with scene.registry:
        yield scene


async def test_a_cut_body_goes_on_where_it_broke(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(1000))
    assert await scene.read() == BLOB
    assert [request.range for request in scene.fake.log] == [None, f"bytes=1000-{len(BLOB) - 1}"]
    assert scene.fake.log[1].headers["if-range"] == f'"{scene.blob.digest}"'
    assert sum(request.sent for request in scene.fake.log) == len(BLOB)


async def test_progress_resets_the_count_of_tries(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(500), times=15)
    assert await scene.read() == BLOB
    assert scene.fake.requests() == 16


async def test_crumbs_are_not_progress_for_ever(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(1), times=None)
    with pytest.raises(Unreachable):
        await scene.read()
    assert scene.fake.requests() == 35


async def test_three_tries_without_progress_give_up(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(500), times=1)
    scene.fake.fault(faults.cut_at(0), times=None)
    with pytest.raises(Unreachable, match="broke"):
        await scene.read()
    assert scene.fake.requests() == 4


async def test_a_stall_goes_on_where_it_stopped(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.stall(after=700), times=2)
    async with scene.impatience(31):
        assert await scene.read() == BLOB
    assert scene.fake.log[1].range == f"bytes=700-{len(BLOB) - 1}"
    assert scene.fake.requests() == 3


async def test_a_registry_that_stalls_again_after_each_part_is_given_up_within_two_minutes(
    mock_clock: MockClock, scene: Scene
) -> None:
    scene.fake.fault(faults.stall(after=1500), times=None)
    before = scene.clock.current_time()
    async with scene.impatience(31):
        with pytest.raises(TimedOut):
            await scene.read()
    assert 90 <= scene.clock.current_time() - before <= 125


@pytest.mark.parametrize("first", [1, 2])
async def test_calls_of_one_request_share_its_two_minutes(mock_clock: MockClock, scene: Scene, first: int) -> None:
    scene.fake.fault(faults.stall(after=1500), times=first)
    before = scene.clock.current_time()
    async with scene.impatience(31):
        with one_request():
            assert await scene.read() == BLOB
            scene.fake.fault(faults.stall(after=1500), times=None)
            with pytest.raises(TimedOut):
                await scene.read()
        assert scene.clock.current_time() - before <= 125
        scene.fake.reset()
        scene.fake.fault(faults.stall(after=1500), times=2)
        assert await scene.read() == BLOB


async def test_a_large_part_makes_up_for_the_stall_behind_it(mock_clock: MockClock, fake: FakeRegistry) -> None:
    scene = Scene(mock_clock, fake, Limits(gain_rate=40))
    fake.fault(faults.stall(after=1500), times=6)
    async with scene.registry, scene.impatience(31):
        assert await scene.read() == BLOB
    assert fake.requests() == 7


async def test_a_prefix_that_is_sent_again_is_no_progress(mock_clock: MockClock, scene: Scene) -> None:
    stalled = faults.stall(after=1500)
    scene.fake.fault(lambda reply: stalled(faults.range_ignored()(reply) or reply), times=None)
    async with scene.impatience(31):
        with pytest.raises(TimedOut):
            await scene.read()
    assert scene.fake.requests() == 3


async def test_stalls_without_progress_give_up(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.stall(after=0), times=None)
    async with scene.impatience(31):
        with pytest.raises(TimedOut, match="sent nothing for 30 s"):
            await scene.read()
    assert scene.fake.requests() == 3


async def test_a_slow_consumer_is_no_stall(mock_clock: MockClock, scene: Scene) -> None:
    got = b""
    scene.fake.fault(faults.no_length())
    async with scene.registry.blob(scene.fake.host, REPOSITORY, scene.blob) as stream:
        async for piece in stream:
            scene.clock.jump(1000)
            got += piece
    assert got == BLOB


async def test_a_resumed_range_ends_where_it_should(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(50))
    assert await scene.read(1000, 2000) == BLOB[1000:2000]
    assert [request.range for request in scene.fake.log] == ["bytes=1000-1999", "bytes=1050-1999"]


async def test_a_failure_on_the_way_is_that_failure(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.cut_at(1000))
    scene.fake.fault(faults.status(418))
    with pytest.raises(RegistryFailed, match="418"):
        await scene.read()


@pytest.mark.parametrize(
    "action", [faults.longer(1), faults.longer(1, announced=True), faults.longer(9_000_000), faults.endless()]
)
@pytest.mark.parametrize("offset", [0, 10])
async def test_more_than_declared_is_refused_before_the_last_byte(
    mock_clock: MockClock, scene: Scene, action: Action, offset: int
) -> None:
    scene.fake.fault(action, times=None)
    got: list[bytes] = []

    async def read() -> None:
        async with scene.registry.blob(scene.fake.host, REPOSITORY, scene.blob, offset) as stream:
            async for piece in stream:
                got.append(piece)

    with pytest.raises(VerificationFailed):
        await read()
    assert sum(map(len, got)) < len(BLOB) - offset


async def test_less_than_declared_is_refused(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.wrong_length(len(BLOB) - 1), times=None)
    with pytest.raises(VerificationFailed, match=str(len(BLOB) - 1)):
        await scene.read()


async def test_a_body_in_chunks_is_fine_and_keeps_its_connection(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.no_length())
    assert await scene.read() == BLOB
    assert await scene.read() == BLOB
    assert len({request.peer for request in scene.fake.log}) == 1


async def test_a_missing_end_mark_does_not_hold_back_the_last_bytes(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(lambda reply: faults.stall(len(BLOB))(faults.no_length()(reply) or reply))
    async with scene.impatience(3):
        assert await scene.read() == BLOB
    assert scene.fake.requests() == 1


@pytest.mark.parametrize("offset", [1, len(BLOB) // 2, LATE])
async def test_an_ignored_range_is_taken_if_little_is_wasted(mock_clock: MockClock, scene: Scene, offset: int) -> None:
    scene.fake.fault(faults.range_ignored(), times=None)
    assert await scene.read(offset) == BLOB[offset:]
    assert scene.fake.requests() == 1


async def test_an_ignored_range_with_an_end_is_left_at_the_end(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.range_ignored(), times=None)
    assert await scene.read(100, 200) == BLOB[100:200]


async def test_an_ignored_range_that_wastes_too_much_is_an_error(mock_clock: MockClock, strict: Scene) -> None:
    strict.fake.fault(faults.range_ignored(), times=None)
    assert await strict.read(len(BLOB) // 2) == BLOB[len(BLOB) // 2 :]
    with pytest.raises(RegistryFailed, match="ignores Range"):
        await strict.read(LATE)


LIES = [
    faults.content_range(f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}"),
    faults.content_range("bytes 10-20/5"),
    faults.content_range("nonsense"),
    faults.content_range(f"bytes {LATE}-{len(BLOB) - 1}/{len(BLOB) + 1}"),
    faults.content_range(f"bytes {LATE}-{LATE - 5}/{len(BLOB)}"),
    faults.status(206, b"x" * 100),
    faults.status(416),
]


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_about_a_range_is_answered_with_a_full_get(
    mock_clock: MockClock, scene: Scene, lie: Action
) -> None:
    scene.fake.fault(lie)
    assert await scene.read(LATE) == BLOB[LATE:]
    assert scene.fake.requests() == 2
    assert scene.fake.log[1].range is None


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_about_a_range_is_refused_where_a_full_get_costs_too_much(
    mock_clock: MockClock, strict: Scene, lie: Action
) -> None:
    strict.fake.fault(lie, times=None)
    with pytest.raises(VerificationFailed):
        await strict.read(LATE)
    assert strict.fake.requests() == 1


@pytest.mark.parametrize("lie", LIES)
async def test_wrong_answers_to_every_request_are_refused(mock_clock: MockClock, scene: Scene, lie: Action) -> None:
    scene.fake.fault(lie, times=None)
    with pytest.raises(ImgfsError) as caught:
        await scene.read(1)
    assert isinstance(caught.value, VerificationFailed)
    assert scene.fake.requests() == 2


async def test_wrong_bytes_are_not_detected_by_the_stream(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.wrong_bytes())
    assert await scene.read() != BLOB
