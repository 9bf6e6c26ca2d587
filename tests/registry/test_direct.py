"""Bodies that are long enough to be received in threads: they behave like all other bodies."""

from __future__ import annotations

import errno
import random

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import TimedOut, Unreachable
from imgfs.oci.descriptor import Descriptor
from imgfs.registry.http.answer import LONG, PIECE
from imgfs.testing import faults
from imgfs.testing.faults import Action
from tests.registry.scene import REPOSITORY, Scene

LENGTH = 2 * LONG + 4321
DATA = random.Random(1).randbytes(LENGTH)


@pytest.fixture
async def long(mock_clock: MockClock, scene: Scene) -> Scene:
    """A scene whose blob is DATA."""
    scene.blob = Descriptor(scene.fake.add_blob(DATA), LENGTH, "application/octet-stream")
    return scene


async def _pieces(scene: Scene) -> list[bytes]:
    async with scene.registry.blob(scene.host, REPOSITORY, scene.blob) as stream:
        return [piece async for piece in stream]


async def test_the_bytes_are_the_same_in_large_pieces(mock_clock: MockClock, long: Scene) -> None:
    pieces = await _pieces(long)
    assert b"".join(pieces) == DATA
    assert {len(piece) for piece in pieces[1:-1]} == {PIECE}
    assert long.registry.statistics().hosts[long.host].received == LENGTH


async def test_a_range_ends_where_it_should(mock_clock: MockClock, long: Scene) -> None:
    assert await long.read(5, LENGTH - 7) == DATA[5:-7]


async def test_chunks_come_as_before(mock_clock: MockClock, long: Scene) -> None:
    long.fake.fault(faults.no_length())
    assert await long.read() == DATA


async def test_other_calls_go_on_afterwards(mock_clock: MockClock, long: Scene) -> None:
    await long.read()
    assert await long.ask("manifest") == long.expected("manifest")
    assert await long.read() == DATA


async def test_a_cut_body_goes_on_where_it_broke(mock_clock: MockClock, long: Scene) -> None:
    long.fake.fault(faults.cut_at(LONG + 1000))
    assert await long.read() == DATA
    assert [request.range for request in long.fake.log] == [None, f"bytes={LONG + 1000}-{LENGTH - 1}"]


async def test_a_body_that_is_cut_again_and_again_gives_up(mock_clock: MockClock, long: Scene) -> None:
    long.fake.fault(faults.cut_at(PIECE), times=1)
    long.fake.fault(faults.cut_at(0), times=None)
    with pytest.raises(Unreachable, match="broke"):
        await long.read()
    assert long.fake.requests() == 4


async def test_a_stall_goes_on_where_it_stopped(mock_clock: MockClock, long: Scene) -> None:
    long.fake.fault(faults.stall(after=LONG))
    async with long.impatience(31):
        assert await long.read() == DATA
    assert long.fake.requests() == 2
    assert sum(request.sent for request in long.fake.log) < 2 * LENGTH


async def test_silence_is_a_failure_in_the_end(mock_clock: MockClock, long: Scene) -> None:
    long.fake.fault(faults.stall(after=0), times=1)
    long.fake.fault(faults.stall(after=PIECE), times=1)
    long.fake.fault(faults.stall(after=0), times=None)
    async with long.impatience(31):
        with pytest.raises(TimedOut, match="sent nothing for 30 s"):
            await long.read()


@pytest.mark.parametrize("action", [faults.stall(after=PIECE), faults.stall(after=0)])
async def test_cancelling_closes_the_connection_and_leaves_the_others(
    mock_clock: MockClock, long: Scene, action: Action
) -> None:
    long.fake.fault(action)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(long.read)
        stalled = await trio.to_thread.run_sync(long.fake.valve.wait_arrival)
        nursery.cancel_scope.cancel()
    assert stalled is not None
    while not stalled.abandoned:
        await trio.lowlevel.checkpoint()
    stalled.release()
    assert await long.read() == DATA


async def test_what_is_there_is_given_out_before_a_piece_is_full(mock_clock: MockClock, long: Scene) -> None:
    """With a slow registry, bytes that have come must not wait for the rest of a piece."""
    long.fake.fault(faults.stall(after=PIECE + 1000))
    got = 0
    async with long.registry.blob(long.host, REPOSITORY, long.blob) as stream:
        async for piece in stream:
            got += len(piece)
            if got == PIECE + 1000:
                long.fake.release()
    assert got == LENGTH


async def test_without_a_free_descriptor_it_comes_as_before(
    mock_clock: MockClock, long: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_free(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("imgfs.registry.http.answer.socket.fromfd", none_free)
    assert await long.read() == DATA
