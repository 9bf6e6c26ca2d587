"""Copies of the compressed bytes of layers during unpacking, and streams that resume from such a copy.

This module decides when a copy is made, and whether it is kept when a pass fails. content/ingests/downloads.py stores
the bytes.
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
"""Opens a stream of a blob at a registry, from an offset to the end."""

COPIED_MIN = 1 << 20
"""Bytes of the smallest layer that is copied. Fetching a smaller layer again is cheaper than keeping a copy."""


def is_small(descriptor: Descriptor) -> bool:
    """Return whether a layer is collected in memory and then unpacked, instead of being unpacked and copied as it
    comes.
    """
    return descriptor.size < COPIED_MIN


async def open_copy(ingests: IngestStore, descriptor: Descriptor) -> LayerCopy | None:
    """Open the copy of a layer, which begins with the bytes that an earlier pass kept.

    Returns None if there can be no copy: the ref has another writer, or the disk has no space. Raises Cancelled if the
    ref is removed at this moment.
    """
    try:
        copy = await ingests.copy(descriptor.digest, descriptor.size)
    except TooLarge:  # the kept bytes belong to a descriptor with another size
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
    """Run `work`, which fills `copy`. If it fails, close the copy, and keep its bytes if the next pass can use them.

    On success the caller closes the copy, also if the caller is cancelled at that moment. Raises what `work` raises,
    and Cancelled as soon as the ref is removed. If the ref disappears because the blob was stored meanwhile, `work`
    continues without the copy.
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
    """Return whether the next pass should continue from `copy` after `error`.

    After Malformed a complete copy is useless, because its bytes are no layer. An incomplete copy is kept: the
    malformed bytes were an answer that was not the blob, for example a login page.
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
    """Yield the bytes of a blob: first the copied ones, then the rest from the registry. The caller closes the
    generator.

    If the registry ignores the offset, the whole blob is requested and the copied bytes are skipped.
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
