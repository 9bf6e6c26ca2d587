"""A pipeline of stages over one stream. Each stage runs in its own thread; the order of pieces is kept.

isal, hashlib and pwrite release the GIL, so the stages use several cores. Stages pass pieces through bounded queues of
their own, because a trip through the event loop for each piece would cost more than the piece. A slow stage slows the
network down instead of filling memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial
from queue import Full, Queue

import trio

from imgfs.aio.gather import plain_nursery

Piece = bytes | bytearray | memoryview
Stage = Callable[[Piece], Iterable[Piece]]
"""Takes a piece and yields pieces for the next stage.

Runs in one thread, lazily: it may yield much more than it takes.
"""

QUEUE = 4
"""Pieces between two stages."""

_Pieces = Queue[Piece | None]


class _Line:
    """The shared state of one run: whether to continue, and the first failure."""

    def __init__(self) -> None:
        self.stopped = False
        self.failure: Exception | None = None
        self.source = trio.CancelScope()
        """Wraps the source: a stage that fails must not wait for the network."""

    def fail(self, error: Exception) -> None:
        """Record a failed stage and stop the others."""
        self.end(error)
        self.stopped = True

    def end(self, error: Exception) -> None:
        """Record a failed source; the pieces that it gave before are still processed."""
        if not self.stopped and self.failure is None:
            self.failure = error


async def run_pipeline(source: AsyncIterable[Piece], *stages: Stage) -> None:
    """Send every piece of `source` through `stages`. The output of the last stage is dropped.

    Returns when everything is processed. The first error of the source or of a stage ends the run and is raised as
    itself; the pieces that the source gave before its error still pass all stages. Memory: `QUEUE` pieces before each
    stage and one in it, whatever a piece inflates to. Cancellation waits for the current pieces.
    """
    line = _Line()
    queues: list[_Pieces] = [Queue(QUEUE) for _ in stages]
    following: list[_Pieces | None] = [*queues[1:], None]
    # Every stage needs a thread at the same time. With a shared limiter, stages of two runs could block each other.
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
    """Run one stage to the end of its queue, also after a failure, so that no other stage waits for ever for room in
    it.
    """
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
