"""All unfinished writes of one state directory, `ingest/<id>/{data,meta}`, by ref, and their writers.

This module owns the operations on a ref. table.py tracks holders, committer.py commits, ingest.py holds the bytes of
one ingest. transfer/ and fs/ bring the bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio
from msgspec import UNSET, UnsetType

from imgfs.content.ingests.committer import Committer, check_total, stored_already
from imgfs.content.ingests.directories import drop
from imgfs.content.ingests.downloads import LayerCopy, copy_ref
from imgfs.content.ingests.ingest import Ingest
from imgfs.content.ingests.refs import parse_ref, promised_digest
from imgfs.content.ingests.status import IngestStatus, IngestTally, status_of
from imgfs.content.ingests.table import IngestTable, rename
from imgfs.content.store import BlobInfo, ContentStore
from imgfs.errors import (
    Busy,
    Cancelled,
    ImgfsError,
    Invalid,
    NotFound,
    NotPermitted,
    OffsetMismatch,
    TimedOut,
    TooLarge,
    from_os,
    opened_read_only,
)
from imgfs.metrics.family import Family
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.content.ingests.ingest import Ingest
    from imgfs.content.store import BlobInfo

DIGEST_SECONDS = 100
"""The longest wait for the digest of a resumed ingest. It is below the 120 s in which every request must end."""

_log = logging.getLogger("imgfs.content.ingest")


class IngestStore:
    """Writers by ref. `nursery` must outlive every caller: it hashes resumed prefixes and records syncs."""

    def __init__(self, content: ContentStore, nursery: trio.Nursery, era: str | None = None) -> None:
        """Load what an earlier run left. `era` defaults to era_of()."""
        self._content = content
        self._disk = content.disk
        self._table = IngestTable(content.disk, content.ingest, nursery)
        self._table.load(era, read_only=content.is_read_only)
        self._committer = Committer(content, self._table)
        self._tally = IngestTally()

    def __iter__(self) -> Iterator[IngestStatus]:
        return iter([status_of(ingest) for ingest in self._table])

    def __contains__(self, ref: str) -> bool:
        return ref in self._table

    @property
    def is_filling(self) -> bool:
        """Whether any writer is open."""
        return any(ingest.is_held for ingest in self._table)

    def families(self) -> list[Family]:
        """Return the metrics of unfinished writes."""
        return self._tally.families(self._table)

    def status(self, ref: str) -> IngestStatus:
        """Return the status of a ref. Never waits. Raises NotFound."""
        return status_of(self._table.find(ref))

    async def digest(self, ref: str) -> Digest:
        """Return the digest of all bytes of `ref` at this moment. After a restart, this hashes what is not hashed yet.

        Raises TimedOut after DIGEST_SECONDS. After a timeout or a cancellation, the next call continues where this one
        stopped. Raises NotFound, StorageFailed, and Cancelled or AlreadyExists if the ingest is removed.
        """
        ingest = self._table.find(ref)
        ingest.progress()
        with trio.move_on_after(DIGEST_SECONDS):
            return await ingest.whole_digest()
        raise TimedOut(
            f"{ingest.subject}: {ingest.running.position} of {ingest.offset} bytes are hashed after "
            f"{DIGEST_SECONDS} s; read the attribute again to continue"
        )

    async def open(self, ref: str, *, total: int | None = None, expected: Digest | None = None) -> IngestWriter:
        """Start or resume the writer of `ref`, at its offset. The prefix of a resumed one is hashed in the background.

        `total` and `expected` are declared if given. Raises Invalid; Busy if another writer stays open for 100 ms;
        AlreadyExists if the blob named by the ref or by a declaration is stored (the ingest is dropped then); TooLarge,
        NoSpace, StorageFailed, ReadOnly.
        """
        return IngestWriter(self, await self._take(parse_ref(ref), total, expected, as_copy=False))

    async def copy(self, digest: Digest, total: int) -> LayerCopy:
        """Start or resume the copy of a blob of `total` bytes that the caller verifies. Raises as `open`.

        Bytes that are here already are not hashed: the caller reads and hashes them.
        """
        ingest = await self._take(copy_ref(digest), total, digest, as_copy=True)
        try:
            async with ingest.turn():
                file = os.dup(await ingest.open_file())
        except OSError as error:
            self.release(ingest)
            raise from_os(error, ingest.subject) from None
        except BaseException:
            self.release(ingest)
            raise
        return LayerCopy(self, ingest, self._disk, file)

    async def _take(self, ref: str, total: int | None, expected: Digest | None, *, as_copy: bool) -> Ingest:
        check_total(total)
        self._refuse_read_only(f"ingest {ref!r}")
        await self._refuse_stored(self._table.get(ref), promised_digest(ref) or expected)
        ingest, is_new = await self._table.hold(ref, total, expected)
        if is_new:
            self._tally.count("started")
        try:
            await self._refuse_stored(ingest, expected or ingest.meta.expected)
            if total not in (None, ingest.meta.total) or expected not in (None, ingest.meta.expected):
                await ingest.declare(
                    total=UNSET if total is None else total, expected=UNSET if expected is None else expected
                )
            ingest.resume(as_copy=as_copy)
        except BaseException:
            self.release(ingest)
            raise
        return ingest

    async def declare(
        self,
        ref: str,
        *,
        total: int | UnsetType | None = UNSET,
        expected: Digest | UnsetType | None = UNSET,
    ) -> None:
        """Declare total size or expected digest, durably. The latest value wins; None removes it. A writer may be open.

        Raises NotFound; Invalid; TooLarge if there are more bytes already; AlreadyExists if `expected` is stored: the
        ingest is dropped then, and its writer gets the error.
        """
        ingest = self._table.find(ref)
        self._refuse_read_only(ingest.subject)
        check_total(total)
        await self._refuse_stored(ingest, expected if isinstance(expected, Digest) else None)
        await ingest.declare(total=total, expected=expected)

    async def commit(self, ref: str, digest: Digest) -> BlobInfo:
        """Verify the bytes and store them as `digest`. On return they survive a power cut, and the ref is free.

        Waits for the running digest, and can be cancelled until then. Raises NotFound; Busy while a writer is open;
        VerificationFailed if size or digest differ (the ingest stays); AlreadyExists (the ingest is removed); NoSpace,
        StorageFailed, ReadOnly.
        """
        self._refuse_read_only(self._table.find(ref).subject)
        ingest = await self._table.hold_known(ref)
        try:
            async with ingest.turn():
                await self._table.place_directory(ingest)
                info = await self._committer.commit(ingest, digest)
        finally:
            self.release(ingest)
        self._tally.count("committed", committed_bytes=info.size)
        return info

    async def rename(self, ref: str, new: str) -> None:
        """Give an ingest without a writer the ref `new`, replacing an ingest of that ref without a writer.

        Atomic, durable.

        Raises NotFound; Invalid; Busy if either has a writer; AlreadyExists if `new` names a digest that is stored (the
        ingest is dropped then); NoSpace, StorageFailed, ReadOnly.
        """
        new = parse_ref(new)
        self._refuse_read_only(self._table.find(ref).subject)
        ingest = await self._table.hold_known(ref)
        replaced: Ingest | None = None
        try:
            if new == ingest.meta.ref:
                return
            if new in self._table:
                replaced = await self._table.hold_known(new)
            await self._refuse_stored(ingest, promised_digest(new))
            await rename(self._table, ingest, replaced, new)
        finally:
            self.release(ingest)
            if replaced is not None:
                self.release(replaced)

    async def abort(self, ref: str) -> None:
        """Remove an ingest and its bytes; an open writer gets Cancelled. Works on a full disk.

        Raises NotFound, StorageFailed, ReadOnly.
        """
        ingest = self._table.find(ref)
        await self._content.check_writable(ingest.subject)
        async with ingest.lock:
            if ingest.gone is None:
                await self._table.remove(ingest, Cancelled(f"{ingest.subject}: was removed; start again"))
                self._tally.count("aborted")
                return
        raise NotFound(f"ingest {ref!r}: does not exist")

    async def reclaim(self, status: IngestStatus) -> None:
        """Remove the ingest that `status` describes if it has no writer, not durably.

        No caller can resume it after the first await.

        Raises Busy, NotFound, StorageFailed, ReadOnly.
        """
        ingest = self._table.find(status.ref)
        self._refuse_read_only(ingest.subject)
        if ingest.is_held or ingest.gone is not None or ingest.meta.started != status.started:
            raise Busy(f"{ingest.subject}: is in use again")
        with self._table.held(ingest):
            async with ingest.turn():
                await self._table.remove(ingest, Cancelled(f"{ingest.subject}: was removed to make room"), drop)

    async def sync(self) -> None:
        """Make all bytes of all ingests durable, for the end of the daemon. Disk errors are logged."""
        for ingest in self._table:
            try:
                await ingest.record()
            except ImgfsError as error:
                _log.warning("ingest not synced", extra={"ref": ingest.meta.ref, "error": error.message})
            if ingest.failed is not None:  # failed now, or in the background just before
                async with ingest.lock:
                    await ingest.cut()

    async def record_again(self, id: str) -> bool:
        """Write the record of the ingest in the directory `id` again, from memory. Returns False if it is unknown.

        An ingest whose bytes are gone is dropped. Raises Busy while a writer is open, NoSpace, StorageFailed.
        """
        ingest = next((one for one in self._table if one.path.name == id), None)
        if ingest is None:
            return False
        if not ingest.data.exists():
            await self.abort(ingest.meta.ref)
        else:
            await ingest.declare()
        return True

    async def close(self) -> None:
        """Sync all ingests and refuse later writes; an open writer gets Cancelled. Never raises."""
        await self.sync()
        for ingest in self._table:
            async with ingest.lock:
                if ingest.gone is None:
                    ingest.end(Cancelled(f"{ingest.subject}: its store was closed; open it again"))

    def release(self, ingest: Ingest) -> None:
        """Give up the hold on an ingest. For the writer."""
        self._table.release(ingest)

    async def release_copy(self, ingest: Ingest, *, keep: bool) -> None:
        """Give up the hold on a copy, and keep or remove its bytes. For the copy. Never raises."""
        async with ingest.lock:
            if keep or ingest.gone is not None:
                ingest.close_file()
                self.release(ingest)
                return
            try:
                await self._table.remove(ingest, NotFound(f"{ingest.subject}: is not needed any more"), drop)
            except ImgfsError as error:
                _log.warning("copy not removed", extra={"ref": ingest.meta.ref, "error": error.message})

    async def _refuse_stored(self, ingest: Ingest | None, digest: Digest | None) -> None:
        if digest is None or digest not in self._content:
            return
        self._content.rely(digest)
        reason = stored_already(digest)
        if ingest is not None:
            async with ingest.lock:
                if ingest.gone is None:
                    await self._table.remove(ingest, reason)
        raise reason

    def _refuse_read_only(self, subject: str) -> None:
        if self._content.is_read_only:
            raise opened_read_only(subject)


class IngestWriter:
    """The truncatable, resumable writer of one ref; at most one is open at a time. Several tasks may call it.

    A cancelled call has happened completely or not at all; `offset` tells which. Every method raises Cancelled after
    the ref was aborted, and AlreadyExists after its expected digest turned out to be stored. Use it as an async
    context, or call `close`.
    """

    def __init__(self, store: IngestStore, ingest: Ingest) -> None:
        self._store = store
        self._ingest = ingest
        self._is_closed = False

    async def __aenter__(self) -> IngestWriter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def ref(self) -> str:
        """The current ref."""
        return self._ingest.meta.ref

    @property
    def offset(self) -> int:
        """The offset of the next byte: the number of bytes on disk."""
        return self._ingest.offset

    @property
    def total(self) -> int | None:
        """The declared size in bytes."""
        return self._ingest.meta.total

    @property
    def expected(self) -> Digest | None:
        """The declared digest."""
        return self._ingest.meta.expected

    async def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises as `write_at`."""
        async with self._turn() as ingest:
            if ingest.failed is not None:
                raise ingest.failed
            self._check_room(ingest.offset, piece)
            await ingest.append(piece)

    async def write_at(self, offset: int, piece: bytes | memoryview) -> None:
        """Append a piece at `offset`, which must be the current offset; at 0, drop all bytes and start again.

        Raises OffsetMismatch; TooLarge past the total; NoSpace (the bytes that fitted are kept, and the caller
        continues at `offset` once there is space) and StorageFailed. The last two are also raised for an earlier failed
        background sync.
        """
        async with self._turn() as ingest:
            if offset not in (0, ingest.offset):
                raise ingest.failed or OffsetMismatch(
                    f"{ingest.subject}: got a write at byte {offset}, expected {ingest.offset}, or 0 to start again"
                )
            self._check_room(offset, piece)
            if offset == 0 and ingest.offset and piece:
                await ingest.restart()
            ingest.clear_failure()
            await ingest.append(piece)

    async def truncate(self, size: int) -> None:
        """Truncate to 0, which starts again, or to the current size, which changes nothing.

        Raises Invalid for other sizes.
        """
        async with self._turn() as ingest:
            if size not in (0, ingest.offset):
                raise Invalid(f"{ingest.subject}: truncate to {size}; expected 0 or its size, {ingest.offset}")
            if size == 0 and (ingest.offset or ingest.failed):
                await ingest.restart()

    async def restart(self) -> None:
        """Drop the bytes and start again at 0; total and expected stay."""
        await self.truncate(0)

    async def fsync(self) -> None:
        """Make all bytes so far durable. Commits nothing.

        Raises NoSpace or StorageFailed. A failed sync is final: `offset` is back at the last recorded sync.
        """
        async with self._turn() as ingest:
            if ingest.failed is not None:
                raise ingest.failed
            try:
                await ingest.record()
            except ImgfsError:
                await ingest.cut()
                raise
            # The failed sync may be one of another task that this call waited for.
            ingest.check_alive()
            await ingest.check_kept()

    async def commit(self, digest: str | None = None) -> BlobInfo:
        """Close, verify and store the bytes as `digest`, by default as the expected digest, or as the digest that they
        have.

        No other writer gets the ref in between. Raises as IngestStore.commit, and Invalid for a malformed digest.
        """
        wanted = None if digest is None else Digest.parse(digest)
        async with self._turn() as ingest:
            wanted = wanted or self.expected or await ingest.whole_digest()
        await self.close()
        return await self._store.commit(self.ref, wanted)

    async def close(self) -> None:
        """Release the ref without a commit. The bytes stay and can be resumed. Never raises."""
        if not self._is_closed:
            self._is_closed = True
            with trio.CancelScope(shield=True):
                async with self._ingest.lock:
                    self._ingest.close_behind()
                    self._store.release(self._ingest)

    def _check_room(self, offset: int, piece: bytes | memoryview) -> None:
        total = self._ingest.meta.total
        if total is not None and offset + len(piece) > total:
            raise TooLarge(f"{self._ingest.subject}: more than the {total} bytes it was declared with")

    def _turn(self) -> AbstractAsyncContextManager[Ingest]:
        if self._is_closed:
            raise NotPermitted(f"{self._ingest.subject}: its writer was closed; open another")
        return self._ingest.turn()
