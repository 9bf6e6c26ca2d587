"""A line of stages over one stream, each in a thread of its own, side by side and in order.

What isal, hashlib and pwrite do without the GIL so runs on several cores. Stages hand pieces on through bounded queues
of their own: a trip through the event loop for each piece would cost more than the piece. A slow stage holds back the
network instead of filling memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial
from queue import Full, Queue

import trio

from imgfs.aio.gather import plain_nursery

Piece = bytes | bytearray | memoryview
Stage = Callable[[Piece], Iterable[Piece]]
"""Takes a piece, yields what the next stage gets. Runs in one thread, lazily: it may yield a lot."""

QUEUE = 4
"""Pieces between two stages."""

_Pieces = Queue[Piece | None]


class _Line:
    """What the stages of one run share: whether to go on, and the first failure."""

    def __init__(self) -> None:
        self.stopped = False
        self.failure: Exception | None = None
        self.source = trio.CancelScope()
        """Around the source: a stage that fails must not wait for the network to notice."""

    def fail(self, error: Exception) -> None:
        """A stage failed: the others stop."""
        self.end(error)
        self.stopped = True

    def end(self, error: Exception) -> None:
        """The source failed: what it gave before goes through."""
        if not self.stopped and self.failure is None:
            self.failure = error


async def run_pipeline(source: AsyncIterable[Piece], *stages: Stage) -> None:
    """Send every piece of `source` through `stages`; what the last stage yields is dropped.

    Returns when all is through. The first error of the source or a stage ends the others and is raised as itself; what
    the source gave before its error still goes through all stages.
    Memory: `QUEUE` pieces before each stage and one in it, however far a piece inflates. Cancellation waits for the
    pieces in work.
    """
    line = _Line()
    queues: list[_Pieces] = [Queue(QUEUE) for _ in stages]
    following: list[_Pieces | None] = [*queues[1:], None]
    # A limiter of its own, so that every stage has its thread: with a shared one, stages could wait for one another.
    limiter = trio.CapacityLimiter(len(stages) + 1)
    async with plain_nursery() as nursery:
        for stage, receive, send in zip(stages, queues, following, strict=True):
            work = partial(_work, line, stage, receive, send)
            nursery.start_soon(partial(trio.to_thread.run_sync, work, limiter=limiter))
        try:
            with line.source:
                await _pump(source, queues[0], line, limiter)
        except Exception as error:  # noqa: BLE001 - raised below, when the stages have ended
            line.end(error)
        except BaseException:
            line.stopped = True
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(queues[0].put, None, limiter=limiter)
    if line.failure is not None:
        raise line.failure


async def _pump(source: AsyncIterable[Piece], send: _Pieces, line: _Line, limiter: trio.CapacityLimiter) -> None:
    async for piece in source:
        if line.stopped:
            return
        try:
            send.put_nowait(piece)
        except Full:
            await trio.to_thread.run_sync(send.put, piece, limiter=limiter)


def _work(line: _Line, stage: Stage, receive: _Pieces, send: _Pieces | None) -> None:
    """Run one stage to the end of its queue, also after a failure, so that nobody waits for room in it for ever."""
    while (piece := receive.get()) is not None:
        if not line.stopped:
            try:
                _pass_on(line, stage, piece, send)
            except Exception as error:  # noqa: BLE001 - raised by run_pipeline
                line.fail(error)
                trio.from_thread.run_sync(line.source.cancel)
    if send is not None:
        send.put(None)


def _pass_on(line: _Line, stage: Stage, piece: Piece, send: _Pieces | None) -> None:
    for produced in stage(piece):
        if line.stopped:
            return
        if send is not None:
            send.put(produced)
