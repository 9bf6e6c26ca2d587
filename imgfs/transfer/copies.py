"""What is kept of layers while they are unpacked, and the stream of a layer that begins with it.

Owns when a copy is made, and what becomes of it when a pass fails. Its bytes are content/ingests/downloads.py's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

import trio

from imgfs.aio.gather import plain_nursery
from imgfs.content.ingests.downloads import LayerCopy, copy_ref
from imgfs.content.ingests.store import IngestStore
from imgfs.errors import (
    AlreadyExists,
    Busy,
    Cancelled,
    Malformed,
    NotFound,
    RangeIgnored,
    StateError,
    TooLarge,
    Unsupported,
    VerificationFailed,
)
from imgfs.oci.descriptor import Descriptor

T = TypeVar("T")

Ask = Callable[[int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens the bytes of a blob at a registry, from an offset to the end."""

COPIED_MIN = 1 << 20
"""Bytes of the smallest layer that is worth a copy: a smaller one is sooner asked for again."""


def is_small(descriptor: Descriptor) -> bool:
    """Whether a layer is gathered whole in memory, and not copied as it comes."""
    return descriptor.size < COPIED_MIN


async def open_copy(ingests: IngestStore, descriptor: Descriptor) -> LayerCopy | None:
    """The copy to keep a layer in, at what an earlier pass left; None if the pass has to do without.

    That is: somebody else writes under the ref, or the disk has no room for it. Raises Cancelled if the ref is taken
    away in this moment.
    """
    try:
        copy = await ingests.copy(descriptor.digest, descriptor.size)
    except TooLarge:  # what is there was for another promise
        return await _begin_again(ingests, descriptor)
    except (Busy, AlreadyExists, NotFound, StateError):
        return None
    return copy


async def _begin_again(ingests: IngestStore, descriptor: Descriptor) -> LayerCopy | None:
    try:
        await ingests.abort(copy_ref(descriptor.digest))
        return await ingests.copy(descriptor.digest, descriptor.size)
    except (TooLarge, Busy, AlreadyExists, NotFound, StateError):
        return None


async def keeping(copy: LayerCopy, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, which fills `copy`. If it fails, the copy is closed: kept if it is worth going on from.

    When it is done, the copy is the caller's to close, also if the caller is cancelled in that moment. Raises what
    `work` raises; Cancelled as soon as somebody removes the ref. If it goes because the blob is stored meanwhile, the
    work goes on without.
    """
    done: list[T] = []
    try:
        await _unless_removed(copy, work, done)
    except BaseException as error:
        if not done:
            await copy.close(keep=_is_worth_keeping(copy, error))
        raise
    return done[0]


def _is_worth_keeping(copy: LayerCopy, error: BaseException) -> bool:
    """Whether the next pass shall go on from `copy` after `error`.

    Malformed is all of it, if it is no layer. Else it was an answer, a login page maybe.
    """
    if isinstance(error, Malformed):
        return not copy.is_whole
    return not isinstance(error, (VerificationFailed, TooLarge, Unsupported))


async def _unless_removed(copy: LayerCopy, work: Callable[[], Awaitable[T]], done: list[T]) -> None:
    removed: list[Cancelled] = []

    async def watch(scope: trio.CancelScope) -> None:
        reason = await copy.wait_removed()
        if isinstance(reason, Cancelled):
            removed.append(reason)
            scope.cancel()

    async with plain_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        done.append(await work())
        nursery.cancel_scope.cancel()
    if not done:
        raise removed[0]


async def resumed(copy: LayerCopy, ask: Ask, size: int) -> AsyncGenerator[bytes]:
    """The bytes of a blob: those that are here, then the rest, if there is one. Close it.

    A registry that ignores where it was asked to begin is asked for the whole, and what is here is skipped.
    """
    async for piece in copy.prefix():
        yield piece
    if copy.start == size:
        return
    async with AsyncExitStack() as stack:
        try:
            stream = await stack.enter_async_context(ask(copy.start))
        except RangeIgnored:
            stream = _skipping(await stack.enter_async_context(ask(0)), copy.start)
        async for piece in stream:
            yield piece


async def _skipping(stream: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    async for piece in stream:
        skipped = min(count, len(piece))
        count -= skipped
        if skipped < len(piece):
            yield piece[skipped:]
