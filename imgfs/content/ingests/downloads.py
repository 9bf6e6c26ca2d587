"""The ingests that imgfs itself writes: downloads of blobs, and copies of layers on their way to the layer store.

Both are visible and can be removed, renamed and resumed like any ingest. A copy keeps bytes that another task verifies,
so that a broken pull can resume. Nothing is promised about the bytes of a copy. Therefore only a timer syncs them, the
passing stream hashes them, and they are given up whenever that helps the reader more.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING

import trio

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.ingest import Ingest, no_progress
from imgfs.content.running_digest import RunningDigest
from imgfs.disk.calls import Disk
from imgfs.errors import AlreadyExists, Cancelled, ImgfsError, NotFound, TooLarge, VerificationFailed
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.content.ingests.store import IngestStore, IngestWriter

Stream = Callable[[int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens the bytes of a blob from an offset to its end."""


def download_ref(digest: Digest) -> str:
    """Return the ref of a download of `digest`."""
    return f"blob-{digest}"


async def download(
    ingests: IngestStore, digest: Digest, total: int, stream: Stream, moved: Callable[[int], object] = lambda _: None
) -> None:
    """Download a blob and store it durably. Continues where an earlier download ended.

    Calls `moved` with the size of each piece. Raises VerificationFailed and TooLarge, which leave nothing, so the next
    call begins at byte 0. Raises Busy if the ref has another writer; Cancelled if the ref was removed; the errors of
    `stream`, NoSpace and StorageFailed, which leave the received bytes to be resumed. So does cancellation.
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
    """Return the writer at its offset; at 0 if the bytes on disk belong to another declaration."""
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
_REPORT_SECONDS = 1.0


def copy_ref(digest: Digest) -> str:
    """Return the ref that keeps the bytes of a layer while it is unpacked."""
    return f"layer-{digest}"


class LayerCopy:
    """The only writer of its ref, for a stream that starts at byte 0: bytes that are on disk are not written again.

    `keep` and `give_up` are called in threads and never raise; the other methods are called on the event loop. Always
    call `close`.
    """

    def __init__(self, store: IngestStore, ingest: Ingest, disk: Disk, file: int) -> None:
        """`file` is a descriptor that the copy owns and `close` closes. The ingest may close its own at any time."""
        self.start = ingest.offset
        """The number of bytes that were kept before."""
        self._store = store
        self._ingest = ingest
        self._disk = disk
        self._file = file
        self._generation = ingest.generation
        self._writing = threading.Lock()
        self._state: tuple[int, RunningDigest | None] = ingest.offset, None
        """The number of bytes in the file, and the digest of a prefix.

        Replaced as one tuple, because the event loop reads it.
        """
        self._is_stopped = False
        self._is_given_up = False
        self._is_closed = False
        ingest.progress = self._report

    @property
    def is_whole(self) -> bool:
        """Whether all declared bytes are kept."""
        return self._state[0] == self._ingest.meta.total

    async def wait_removed(self) -> ImgfsError:
        """Wait until the ref is removed and return the reason. Keeps the sync timer running meanwhile."""
        while self._ingest.gone is None:
            with trio.move_on_after(_REPORT_SECONDS):
                await self._ingest.ended.wait()
            self._report()
        return self._ingest.gone

    async def prefix(self) -> AsyncIterator[bytes]:
        """Yield the bytes that were kept before, at disk speed.

        Raises VerificationFailed if the disk does not return them.
        """
        offset = 0
        while offset < self.start:
            piece = await run_disk(self._read, offset)
            offset += len(piece)
            yield piece

    def keep(self, piece: bytes | bytearray | memoryview, running: RunningDigest) -> None:
        """Append `piece`, the last bytes of the stream, which is at `running.position` now.

        Blocks while new bytes are written.

        If the disk refuses, the copy stops, and the bytes in it stay.
        """
        with self._writing:
            end, before = self._state
            fresh = running.position - end
            if fresh > 0 and not self._is_stopped:
                end = self._write(memoryview(piece)[max(0, len(piece) - fresh) :], end)
            self._state = end, running if running.position <= end else before

    def give_up(self, need: int) -> bool:
        """Free the disk space of the copy if it has at least `need` bytes; return whether it did. Blocks."""
        with self._writing:
            if self._is_given_up or self._state[0] < max(need, 1):
                return False
            try:
                self._disk.truncate(self._file, 0)
            except OSError:
                return False
            self._is_stopped = self._is_given_up = True
            self._state = 0, None
        _log.info("copy given up to free disk space", extra={"ref": self._ingest.meta.ref})
        return True

    async def close(self, *, keep: bool) -> None:
        """Release the ref, and keep the bytes for a resume or remove them. No thread may be in `keep`.

        Not cancelled, never raises. The removal is not durable: garbage collection removes a copy that a power cut
        brings back.
        """
        if self._is_closed:
            return
        self._report()
        self._is_closed = True
        self._ingest.progress = no_progress
        os.close(self._file)
        with trio.CancelScope(shield=True):
            await self._store.release_copy(self._ingest, keep=keep and self._state[0] > 0)

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
            extra = {"ref": self._ingest.meta.ref, "offset": end, "error": error.strerror}
            _log.warning("copy stopped", extra=extra)
        return end

    def _report(self) -> None:
        """Update the ingest with the progress of the threads; on the event loop, which alone changes the ingest.

        Called when the offset is read, and once a second. Waking the event loop for each piece would cost more than
        writing it.
        """
        end, running = self._state
        if self._is_given_up:
            self._ingest.lose()
        elif not self._ingest.advance(self._generation, end, running):
            self._is_stopped = True  # the ingest fell back after a failed sync, or was ended
