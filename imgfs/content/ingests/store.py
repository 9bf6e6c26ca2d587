"""All unfinished writes of one state directory: `ingest/<id>/{data,meta}`, found again by ref.

Owns what callers can do with a ref, and the writer. table.py owns the holders, committer.py the commit, ingest.py the
bytes of one ingest, and directories.py what a crash leaves.
Where bytes come from is transfer/'s and fs/'s.
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
    begun_read_only,
    from_os,
)
from imgfs.metrics.family import Family
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.content.ingests.ingest import Ingest
    from imgfs.content.store import BlobInfo

DIGEST_SECONDS = 100
"""The longest wait for the digest of a resumed ingest: below the 120 s in which every request must end."""

_log = logging.getLogger("imgfs.content.ingest")


class IngestStore:
    """Writers by ref. `nursery` outlives every caller: it hashes resumed prefixes and records what is synced."""

    def __init__(self, content: ContentStore, nursery: trio.Nursery, era: str | None = None) -> None:
        """Find what an earlier run left. `era` is what era_of says unless somebody knows better."""
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
        """Whether anybody is writing now."""
        return any(ingest.is_held for ingest in self._table)

    def families(self) -> list[Family]:
        """What metrics tell of unfinished writes."""
        return self._tally.families(self._table)

    def status(self, ref: str) -> IngestStatus:
        """How a ref stands. Never waits. Raises NotFound."""
        return status_of(self._table.find(ref))

    async def digest(self, ref: str) -> Digest:
        """Return the digest of all bytes of `ref` at this moment. Hashes what is not hashed yet, after a restart.

        Raises TimedOut after DIGEST_SECONDS; the next call then continues where this one stopped. So does a call after
        one that was cancelled. Raises NotFound, StorageFailed, and Cancelled or AlreadyExists if the ingest is removed.
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
        """Start or resume the writer of `ref`, at its offset; a resumed one hashes its prefix meanwhile.

        A given total or expected digest is declared. Raises Invalid; Busy if another writer lives on after 100 ms;
        AlreadyExists if what the ref or a declaration promises is stored: then the ingest is dropped; TooLarge,
        NoSpace, StorageFailed, ReadOnly.
        """
        return IngestWriter(self, await self._take(parse_ref(ref), total, expected, as_copy=False))

    async def copy(self, digest: Digest, total: int) -> LayerCopy:
        """Start or resume the copy of a blob of `total` bytes that somebody else verifies. Raises as `open`.

        What is there already is not hashed: it passes him who verifies.
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
        """Say what is coming, durably; the latest wins, None takes it back. Also while a writer is at work.

        Raises NotFound; Invalid; TooLarge if more bytes are there already; AlreadyExists if `expected` is stored: then
        the ingest is dropped, and its writer told.
        """
        ingest = self._table.find(ref)
        self._refuse_read_only(ingest.subject)
        check_total(total)
        await self._refuse_stored(ingest, expected if isinstance(expected, Digest) else None)
        await ingest.declare(total=total, expected=expected)

    async def commit(self, ref: str, digest: Digest) -> BlobInfo:
        """Verify the bytes and store them as `digest`; on return they survive a power cut, and the ref is free.

        Raises NotFound; Busy while a writer lives; VerificationFailed (size or digest differ: the ingest stays);
        AlreadyExists (the ingest goes); NoSpace, StorageFailed, ReadOnly. Waits for the running digest; cancelled until
        then.
        """
        self._refuse_read_only(self._table.find(ref).subject)
        ingest = await self._table.hold_known(ref)
        try:
            async with ingest.turn():
                await self._table.settle(ingest)
                info = await self._committer.commit(ingest, digest)
        finally:
            self.release(ingest)
        self._tally.count("committed", committed_bytes=info.size)
        return info

    async def rename(self, ref: str, new: str) -> None:
        """Call an idle ingest `new`; an idle one of that name is replaced. Atomic and durable.

        Raises NotFound; Invalid; Busy if either has a writer; AlreadyExists if `new` promises a digest that is stored:
        then the ingest is dropped. NoSpace, StorageFailed, ReadOnly.
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
        """Drop an ingest and its bytes; a live writer gets Cancelled. Works on a full disk.

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
        """Drop an ingest if it is the one that `status` tells of and has no writer, not durably; at the first await
        nobody can resume it. Raises Busy, NotFound, StorageFailed, ReadOnly.
        """
        ingest = self._table.find(status.ref)
        self._refuse_read_only(ingest.subject)
        if ingest.is_held or ingest.gone is not None or ingest.meta.started != status.started:
            raise Busy(f"{ingest.subject}: is in use again")
        with self._table.held(ingest):
            async with ingest.turn():
                await self._table.remove(ingest, Cancelled(f"{ingest.subject}: was removed to make room"), drop)

    async def sync(self) -> None:
        """Make all bytes of all ingests durable: for the end of the daemon. Logs what the disk refuses."""
        for ingest in self._table:
            try:
                await ingest.record()
            except ImgfsError as error:
                _log.warning("ingest not synced", extra={"ref": ingest.meta.ref, "error": error.message})
            if ingest.failed is not None:  # now, or behind its writer just before
                async with ingest.lock:
                    await ingest.cut()

    async def record_again(self, id: str) -> bool:
        """Write the record of the ingest in the directory `id` anew, from memory; False where nobody knows it.

        One whose bytes are gone is dropped. Raises Busy while a writer lives, NoSpace, StorageFailed.
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
        """As `sync`; then nothing can be written any more: a writer that lives on gets Cancelled. Never raises."""
        await self.sync()
        for ingest in self._table:
            async with ingest.lock:
                if ingest.gone is None:
                    ingest.end(Cancelled(f"{ingest.subject}: its store was closed; open it again"))

    def release(self, ingest: Ingest) -> None:
        """The holder is done; for the writer."""
        self._table.release(ingest)

    async def let_go(self, ingest: Ingest, *, keep: bool) -> None:
        """The holder is done, and the bytes stay for the next, or go; for the copy. Never raises."""
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
            raise begun_read_only(subject)


class IngestWriter:
    """Appends to an ingest. Calls may come from several tasks, and take turns.

    A cancelled call has happened wholly or not at all; `offset` tells. Every method raises Cancelled once the ref was
    aborted, and AlreadyExists once its expected digest turned out to be stored. Use as an async context, or `close`.
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
        """The ref, as it is called now."""
        return self._ingest.meta.ref

    @property
    def offset(self) -> int:
        """Where the next byte goes: so many are on disk."""
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
        """Append a piece. Raises what `write_at` raises."""
        async with self._turn() as ingest:
            if ingest.failed is not None:
                raise ingest.failed
            self._check_room(ingest.offset, piece)
            await ingest.append(piece)

    async def write_at(self, offset: int, piece: bytes | memoryview) -> None:
        """Append a piece at `offset`, which must be the current one; at 0, drop what there is and start again.

        Raises OffsetMismatch; TooLarge past the total; NoSpace (what fitted is kept, and the same write goes on from
        `offset` once there is room) and StorageFailed, both also for a sync in the background that failed before.
        """
        async with self._turn() as ingest:
            if offset not in (0, ingest.offset):
                raise ingest.failed or OffsetMismatch(
                    f"{ingest.subject}: got a write at byte {offset}, expected {ingest.offset}, or 0 to start again"
                )
            self._check_room(offset, piece)
            if offset == 0 and ingest.offset and piece:
                await ingest.restart()
            ingest.go_on()
            await ingest.append(piece)

    async def truncate(self, size: int) -> None:
        """0 starts again, the current size changes nothing. Raises Invalid for others."""
        async with self._turn() as ingest:
            if size not in (0, ingest.offset):
                raise Invalid(f"{ingest.subject}: truncate to {size}; expected 0 or its size, {ingest.offset}")
            if size == 0 and (ingest.offset or ingest.failed):
                await ingest.restart()

    async def restart(self) -> None:
        """Drop the bytes and start again at 0; total and expected stay."""
        await self.truncate(0)

    async def fsync(self) -> None:
        """On return all bytes so far survive a power cut. Commits nothing.

        Raises NoSpace or StorageFailed; a failed sync is final, and `offset` is back at the last good one.
        """
        async with self._turn() as ingest:
            if ingest.failed is not None:
                raise ingest.failed
            try:
                await ingest.record()
            except ImgfsError:
                await ingest.cut()
                raise
            # The sync that failed may have been another's, which this one waited for.
            ingest.check_alive()
            await ingest.check_kept()

    async def commit(self, digest: str | None = None) -> BlobInfo:
        """Close, verify and store: as `digest`, else as what was expected, else as what the bytes are.

        Nobody else gets the ref in between. Raises as IngestStore.commit, and Invalid for a malformed digest.
        """
        wanted = None if digest is None else Digest.parse(digest)
        async with self._turn() as ingest:
            wanted = wanted or self.expected or await ingest.whole_digest()
        await self.close()
        return await self._store.commit(self.ref, wanted)

    async def close(self) -> None:
        """Release the ref, without a commit; what was written stays for whoever resumes it. Never raises."""
        if not self._is_closed:
            self._is_closed = True
            with trio.CancelScope(shield=True):
                async with self._ingest.lock:
                    self._ingest.rest()
                    self._store.release(self._ingest)

    def _check_room(self, offset: int, piece: bytes | memoryview) -> None:
        total = self._ingest.meta.total
        if total is not None and offset + len(piece) > total:
            raise TooLarge(f"{self._ingest.subject}: more than the {total} bytes it was declared with")

    def _turn(self) -> AbstractAsyncContextManager[Ingest]:
        if self._is_closed:
            raise NotPermitted(f"{self._ingest.subject}: its writer was closed; open another")
        return self._ingest.turn()
