"""The pipeline: order of pieces, one plain error, cancellation, and bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imgfs.aio.pipeline import Piece, run_pipeline
from imgfs.errors import Malformed


async def source(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        await trio.lowlevel.checkpoint()
        yield piece


def sink(into: list[bytes]) -> Callable[[Piece], Iterable[Piece]]:
    def take(piece: Piece) -> Iterable[Piece]:
        into.append(bytes(piece))
        return ()

    return take


def twice(piece: Piece) -> Iterator[Piece]:
    yield piece
    yield bytes(piece).upper()


def swallow(piece: Piece) -> Iterable[Piece]:
    return () if piece == b"b" else (piece,)


async def test_pieces_go_through_every_stage_in_order() -> None:
    seen: list[bytes] = []
    await run_pipeline(source([b"a", b"b", b"c"]), twice, swallow, sink(seen))
    assert seen == [b"a", b"A", b"B", b"c", b"C"]


async def test_many_pieces_keep_their_order_however_they_are_batched() -> None:
    pieces = [b"%d" % n for n in range(2000)]
    seen: list[bytes] = []
    await run_pipeline(source(pieces), lambda piece: [piece], sink(seen))
    assert seen == pieces


@pytest.mark.parametrize("stages", [1, 2])
async def test_an_empty_source_ends_at_once(stages: int) -> None:
    seen: list[bytes] = []
    await run_pipeline(source([]), *[sink(seen)] * stages)
    assert seen == []


async def test_a_piece_that_yields_several_batches_arrives_whole() -> None:
    seen: list[bytes] = []
    await run_pipeline(source([b"x", b"y"]), lambda piece: [bytes(piece) * 1000] * 5, sink(seen))
    assert [one[:1] for one in seen] == [b"x"] * 5 + [b"y"] * 5


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("lazily", [False, True])
async def test_the_error_of_a_stage_is_raised_as_itself(broken: int, lazily: bool) -> None:
    error = Malformed("bad")

    def fail(piece: Piece) -> Iterable[Piece]:
        if lazily:
            return fail_lazily(piece)
        raise error

    def fail_lazily(piece: Piece) -> Iterator[Piece]:
        yield piece
        raise error

    def passed(piece: Piece) -> Iterable[Piece]:
        return [piece]

    stages = [passed, passed, passed]
    stages[broken] = fail
    with pytest.raises(Malformed) as caught:
        await run_pipeline(source([b"x"] * 1000), *stages)
    assert caught.value is error


async def test_the_error_of_the_source_is_raised_as_itself() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise Malformed("cut")

    seen: list[bytes] = []
    with pytest.raises(Malformed, match="cut"):
        await run_pipeline(broken(), lambda piece: [piece], sink(seen))
    assert seen == [b"x"]  # pieces before the error pass all stages


async def test_cancellation_ends_source_and_stages() -> None:
    ended: list[str] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await trio.lowlevel.checkpoint()
        finally:
            ended.append("source")

    with trio.CancelScope() as scope:

        def cancel(piece: Piece) -> Iterable[Piece]:
            trio.from_thread.run_sync(scope.cancel)
            return ()

        await run_pipeline(endless(), lambda piece: [piece], cancel)
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()
    assert ended == ["source"]


async def test_endless_output_of_one_piece_is_held_back_and_ends_with_the_first_error() -> None:
    made = 0

    def bomb(piece: Piece) -> Iterator[Piece]:
        nonlocal made
        while True:
            made += 1
            yield bytes(1 << 20)

    def refuse(piece: Piece) -> Iterable[Piece]:
        raise Malformed("enough")

    with pytest.raises(Malformed, match="enough"):
        await run_pipeline(source([b"x"]), bomb, refuse)
    assert made < 20


async def test_a_slow_stage_holds_back_the_source() -> None:
    sent = 0
    ahead: list[int] = []

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x"

    def slow(piece: Piece) -> Iterable[Piece]:
        ahead.append(sent - len(ahead))
        return ()

    await run_pipeline(counted(), lambda piece: [piece], slow)
    assert len(ahead) == 100
    assert max(ahead) < 20


async def test_a_failed_stage_does_not_wait_for_the_source() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"x"
        await trio.sleep_forever()

    def refuse(piece: Piece) -> Iterable[Piece]:
        raise Malformed("enough")

    with pytest.raises(Malformed, match="enough"):
        await run_pipeline(stalled(), lambda piece: [piece], refuse)
