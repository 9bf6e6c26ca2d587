"""imgfs's own downloads, by the same writer as everybody's: visible, and resumed by offset."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING

import trio

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.ingest import Ingest, idle
from imgfs.content.running_digest import RunningDigest
from imgfs.disk.calls import Disk
from imgfs.errors import AlreadyExists, Cancelled, ImgfsError, NotFound, TooLarge, VerificationFailed
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.content.ingests.store import IngestStore, IngestWriter

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
    ingests: IngestStore, digest: Digest, writer: IngestWriter, stream: Stream, moved: Callable[[int], object]
) -> None:
    try:
        await _fill(writer, stream, moved)
    except (AlreadyExists, Cancelled):
        raise
    except BaseException as error:
        if writer.offset == 0 or isinstance(error, TooLarge):
            await _discard(ingests, digest)
        raise


async def _open(ingests: IngestStore, digest: Digest, total: int) -> IngestWriter:
    """The writer at its offset; at 0 if what is there was for another promise."""
    ref = download_ref(digest)
    try:
        return await ingests.open(ref, total=total, expected=digest)
    except TooLarge:
        await _discard(ingests, digest)
        return await ingests.open(ref, total=total, expected=digest)


async def _fill(writer: IngestWriter, stream: Stream, moved: Callable[[int], object]) -> None:
    if writer.offset == writer.total and writer.offset:
        return
    async with stream(writer.offset) as pieces:
        async for piece in pieces:
            await writer.write(piece)
            moved(len(piece))


async def _discard(ingests: IngestStore, digest: Digest) -> None:
    with trio.CancelScope(shield=True), suppress(NotFound):
        await ingests.abort(download_ref(digest))


_log = logging.getLogger("imgfs.content.ingest")

_READ = 1 << 20
_TELL_SECONDS = 1.0


def copy_ref(digest: Digest) -> str:
    """The ref under which the bytes of a layer are kept while it is unpacked."""
    return f"layer-{digest}"


class LayerCopy:
    """The one writer of its ref, for a stream that starts at byte 0: what is here is not written again.

    `keep` and `give_up` are called in threads and never raise; the rest on the event loop. `close` it always.
    """

    def __init__(self, store: IngestStore, ingest: Ingest, disk: Disk, file: int) -> None:
        """`file` is a descriptor of the copy's own, which `close` closes: the ingest's may go at any time."""
        self.start = ingest.offset
        """So many bytes were kept before."""
        self._store = store
        self._ingest = ingest
        self._disk = disk
        self._file = file
        self._generation = ingest.generation
        self._writing = threading.Lock()
        self._state: tuple[int, RunningDigest | None] = ingest.offset, None
        """How much is in the file and the digest of a prefix of it: replaced as one, for the event loop reads it."""
        self._is_stopped = False
        self._is_given_up = False
        self._is_closed = False
        ingest.progress = self._tell

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are kept that were declared."""
        return self._state[0] == self._ingest.meta.total

    async def wait_removed(self) -> ImgfsError:
        """Wait until somebody takes the ref away; returns why. Meanwhile the clock that syncs is kept going."""
        while self._ingest.gone is None:
            with trio.move_on_after(_TELL_SECONDS):
                await self._ingest.ended.wait()
            self._tell()
        return self._ingest.gone

    async def prefix(self) -> AsyncIterator[bytes]:
        """What was kept before, at disk speed. Raises VerificationFailed where the disk does not give it."""
        offset = 0
        while offset < self.start:
            piece = await run_disk(self._read, offset)
            offset += len(piece)
            yield piece

    def keep(self, piece: bytes | bytearray | memoryview, running: RunningDigest) -> None:
        """The stream has come to `running.position`, with `piece` last. Blocks, while the disk takes what is new.

        Where the disk takes no more, the copy ends, and what is in it stays.
        """
        with self._writing:
            end, before = self._state
            fresh = running.position - end
            if fresh > 0 and not self._is_stopped:
                end = self._write(memoryview(piece)[max(0, len(piece) - fresh) :], end)
            self._state = end, running if running.position <= end else before

    def give_up(self, need: int) -> bool:
        """Free the disk that the copy takes if that is at least `need` bytes; returns whether it did. Blocks."""
        with self._writing:
            if self._is_given_up or self._state[0] < max(need, 1):
                return False
            try:
                self._disk.truncate(self._file, 0)
            except OSError:
                return False
            self._is_stopped = self._is_given_up = True
            self._state = 0, None
        _log.info("copy given up for the room it takes", extra={"ref": self._ingest.meta.ref})
        return True

    async def close(self, *, keep: bool) -> None:
        """Release the ref: to be resumed, or without a trace. Nobody may be in `keep`. Not cancelled, never raises.

        That a copy is gone is not made durable: what a power cut brings back is garbage.
        """
        if self._is_closed:
            return
        self._tell()
        self._is_closed = True
        self._ingest.progress = idle
        os.close(self._file)
        with trio.CancelScope(shield=True):
            await self._store.let_go(self._ingest, keep=keep and self._state[0] > 0)

    def _read(self, offset: int) -> bytes:
        try:
            piece = os.pread(self._file, min(_READ, self.start - offset), offset)
        except OSError as error:
            raise VerificationFailed(f"{self._ingest.subject}: byte {offset}: {error.strerror}; read again") from None
        if not piece:
            raise VerificationFailed(
                f"{self._ingest.subject}: ends at byte {offset}, expected {self.start}; read again"
            )
        return piece

    def _write(self, view: memoryview, end: int) -> int:
        try:
            while view:
                taken = self._disk.write(self._file, view, end)
                view, end = view[taken:], end + taken
        except OSError as error:
            self._is_stopped = True
            told = {"ref": self._ingest.meta.ref, "offset": end, "error": error.strerror}
            _log.warning("copy goes no further", extra=told)
        return end

    def _tell(self) -> None:
        """Let the ingest know how far the threads are; on the event loop, which alone changes it.

        When it is asked, and once a second. Waking the loop for each piece would cost more than writing it.
        """
        end, running = self._state
        if self._is_given_up:
            self._ingest.lose()
        elif not self._ingest.advance(self._generation, end, running):
            self._is_stopped = True  # it fell back, or is gone
