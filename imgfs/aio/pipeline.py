"""A line of stages over one stream, each in a thread of its own turn, side by side and in order.

What isal, hashlib and pwrite do without the GIL so runs on several cores, while the event loop only hands pieces on.
Queues hold a few batches: a slow stage holds back the network instead of filling memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator

import trio

from imgfs.aio.threads import run_cpu

Piece = bytes | bytearray | memoryview
Stage = Callable[[Piece], Iterable[Piece]]
"""Takes a piece, yields what the next stage gets. Runs in threads, one call at a time, lazily: it may yield a lot."""

BATCH = 2 << 20
_QUEUE = 2


async def run_pipeline(source: AsyncIterable[Piece], *stages: Stage) -> None:
    """Send every piece of `source` through `stages`; what the last stage yields is dropped.

    Returns when all is through. The first error of the source or a stage ends the others and is raised as itself.
    Memory: about `BATCH` bytes times queue length a stage, however far a piece inflates. Cancellation waits for the
    piece in work.
    """
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def guard(step: Awaitable[None]) -> None:
            try:
                await step
            except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery's group
                failures.append(error)
                nursery.cancel_scope.cancel()

        send, receive = trio.open_memory_channel[list[Piece]](_QUEUE)
        nursery.start_soon(guard, _pump(source, send))
        for stage in stages[:-1]:
            send, following = trio.open_memory_channel[list[Piece]](_QUEUE)
            nursery.start_soon(guard, _work(stage, receive, send))
            receive = following
        nursery.start_soon(guard, _work(stages[-1], receive, None))
    if failures:
        raise failures[0]


async def _pump(source: AsyncIterable[Piece], send: trio.MemorySendChannel[list[Piece]]) -> None:
    async with send:
        async for piece in source:
            await send.send([piece])


async def _work(
    stage: Stage, receive: trio.MemoryReceiveChannel[list[Piece]], send: trio.MemorySendChannel[list[Piece]] | None
) -> None:
    async with receive, send or _Nowhere() as target:
        async for batch in receive:
            output, more = _through(stage, batch), True
            while more:
                produced, more = await run_cpu(_take, output)
                await target.send(produced)


class _Nowhere:
    """Where the last stage sends: it yields nothing anybody wants."""

    async def __aenter__(self) -> _Nowhere:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, _: list[Piece]) -> None:
        pass


def _through(stage: Stage, batch: list[Piece]) -> Iterator[Piece]:
    for piece in batch:
        yield from stage(piece)


def _take(output: Iterator[Piece]) -> tuple[list[Piece], bool]:
    """Up to one batch of `output`, and whether there may be more: a trip to a thread costs more than a small piece."""
    taken: list[Piece] = []
    size = 0
    for piece in output:
        taken.append(piece)
        size += len(piece)
        if size >= BATCH:
            return taken, True
    return taken, False
