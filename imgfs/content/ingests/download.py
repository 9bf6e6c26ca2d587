"""imgfs's own downloads, by the same writer as everybody's: visible, and resumed by offset."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress

import trio

from imgfs.content.ingests.store import IngestStore
from imgfs.content.ingests.writer import Writer
from imgfs.errors import AlreadyExists, Cancelled, NotFound, TooLarge, VerificationFailed
from imgfs.oci.digest import Digest

Stream = Callable[[int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens the bytes of a blob from an offset to its end."""


def download_ref(digest: Digest) -> str:
    """The ref that a download of `digest` has."""
    return f"blob-{digest}"


async def download(
    ingests: IngestStore, digest: Digest, total: int, stream: Stream, moved: Callable[[int], object] = lambda _: None
) -> None:
    """On return the blob is stored, durably. Goes on where an earlier download ended.

    `moved` is told the size of each piece. Raises VerificationFailed and TooLarge, which leave nothing: the next call
    begins at byte 0. Busy if the ref has another writer; Cancelled if the ref was removed; whatever `stream` raises,
    NoSpace and StorageFailed, which leave what came, to be resumed. Cancellation leaves it too.
    """
    try:
        async with await _open(ingests, digest, total) as writer:
            await _receive(ingests, digest, writer, stream, moved)
        await ingests.commit(download_ref(digest), digest)
    except AlreadyExists:
        return
    except VerificationFailed:
        await _discard(ingests, digest)
        raise


async def _receive(
    ingests: IngestStore, digest: Digest, writer: Writer, stream: Stream, moved: Callable[[int], object]
) -> None:
    try:
        await _fill(writer, stream, moved)
    except (AlreadyExists, Cancelled):
        raise
    except BaseException as error:
        if writer.offset == 0 or isinstance(error, TooLarge):
            await _discard(ingests, digest)
        raise


async def _open(ingests: IngestStore, digest: Digest, total: int) -> Writer:
    """The writer at its offset; at 0 if what is there was for another promise."""
    ref = download_ref(digest)
    try:
        return await ingests.open(ref, total=total, expected=digest)
    except TooLarge:
        await _discard(ingests, digest)
        return await ingests.open(ref, total=total, expected=digest)


async def _fill(writer: Writer, stream: Stream, moved: Callable[[int], object]) -> None:
    if writer.offset == writer.total and writer.offset:
        return
    async with stream(writer.offset) as pieces:
        async for piece in pieces:
            await writer.write(piece)
            moved(len(piece))


async def _discard(ingests: IngestStore, digest: Digest) -> None:
    with trio.CancelScope(shield=True), suppress(NotFound):
        await ingests.abort(download_ref(digest))
