"""All unfinished writes of one state directory: `ingest/<id>/{data,meta}`, found again by ref.

Owns who writes what, and the step from an ingest to a stored blob. The bytes of one are ingest.py's, what a writer may
do writer.py's, what a crash leaves recovery.py's; where bytes come from is transfer/'s and fs/'s.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Literal, TypeVarTuple

import trio
from msgspec import UNSET, UnsetType

from imgfs.aio.threads import run_disk
from imgfs.content.commits import Naming
from imgfs.content.copy import Copy, copy_ref
from imgfs.content.directories import drop, make, move, remove, remove_committed
from imgfs.content.disk import Disk
from imgfs.content.ingest import Ingest
from imgfs.content.meta import Meta, era_of
from imgfs.content.recovery import Found, read, recover, unfinished
from imgfs.content.refs import parse_ref, promised_digest, ref_id
from imgfs.content.status import Status, status_of
from imgfs.content.store import BlobInfo, ContentStore
from imgfs.content.verification import check_total, stored_already, verify
from imgfs.content.writer import Writer
from imgfs.errors import Busy, Cancelled, ImgfsError, NotFound, StorageFailed, begun_read_only, from_os
from imgfs.metrics.family import Family, counter, gauge
from imgfs.oci.digest import Digest

Outcome = Literal["started", "committed", "aborted"]
OUTCOMES: tuple[Outcome, ...] = ("started", "committed", "aborted")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger("imgfs.content.ingest")

RELEASE_SECONDS = 0.1
"""How long to wait for a writer that is closing: the kernel's RELEASE comes after close(2) has returned."""


class IngestStore:
    """Writers by ref. `nursery` outlives every caller: it hashes resumed prefixes and records what is synced."""

    def __init__(self, content: ContentStore, nursery: trio.Nursery, era: str | None = None) -> None:
        """Find what an earlier run left. `era` is what era_of says unless somebody knows better."""
        self._content = content
        self._disk = content.disk
        self._nursery = nursery
        self._directory = content.ingest
        self._ingests: dict[str, Ingest] = {}
        self._committing: dict[Digest, trio.Event] = {}
        self._counted: Counter[Outcome] = Counter()
        self._committed_bytes = 0
        if self._directory.is_dir():
            self._era = era or era_of(self._directory)
            self._load()

    def _load(self) -> None:
        if not self._content.is_read_only:
            found = list(recover(self._disk, self._directory, self._era))
        else:
            found = list(self._peek())
        for one in found:
            ingest = self._ingests[one.meta.ref] = Ingest(self._disk, one.path, one.meta, one.offset, self._nursery)
            if one.meta.updated < one.meta.started:
                ingest.touched.now()  # the clock was set back meanwhile, so nobody knows

    def _peek(self) -> Iterator[Found]:
        for path in unfinished(self._directory):
            with suppress(OSError, ImgfsError):
                yield read(path, self._era)

    def __iter__(self) -> Iterator[Status]:
        return iter([status_of(ingest) for ingest in dict.fromkeys(self._ingests.values())])

    def __contains__(self, ref: str) -> bool:
        return ref in self._ingests

    @property
    def is_filling(self) -> bool:
        """Whether anybody is writing now."""
        return any(ingest.is_held for ingest in self._ingests.values())

    def families(self) -> list[Family]:
        """What metrics tell of unfinished writes."""
        known = list(dict.fromkeys(self._ingests.values()))
        stand = {("writing",): sum(one.is_held for one in known), ("resting",): sum(not one.is_held for one in known)}
        counted = {(outcome,): self._counted[outcome] for outcome in OUTCOMES}
        committed = {(): self._committed_bytes}
        return [
            gauge("imgfs_ingests", "Unfinished writes.", ("state",), stand),
            counter("imgfs_ingests_total", "Writes that were started, and how they ended.", ("event",), counted),
            counter("imgfs_ingests_committed_bytes_total", "Bytes of ingests that became blobs.", (), committed),
        ]

    def status(self, ref: str) -> Status:
        """How a ref stands. Never waits. Raises NotFound."""
        return status_of(self._find(ref))

    async def open(self, ref: str, *, total: int | None = None, expected: Digest | None = None) -> Writer:
        """Start or resume the writer of `ref`, at its offset; a resumed one hashes its prefix meanwhile.

        A given total or expected digest is declared. Raises Invalid; Busy if another writer lives on after 100 ms;
        AlreadyExists if what the ref or a declaration promises is stored: then the ingest is dropped; TooLarge,
        NoSpace, StorageFailed, ReadOnly.
        """
        return Writer(self, await self._take(parse_ref(ref), total, expected, as_copy=False))

    async def copy(self, digest: Digest, total: int) -> Copy:
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
        return Copy(self, ingest, self._disk, file)

    async def _take(self, ref: str, total: int | None, expected: Digest | None, *, as_copy: bool) -> Ingest:
        check_total(total)
        self._refuse_read_only(f"ingest {ref!r}")
        await self._refuse_stored(self._ingests.get(ref), promised_digest(ref) or expected)
        ingest = await self._hold(ref, total, expected)
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
        ingest = self._find(ref)
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
        self._refuse_read_only(self._find(ref).subject)
        ingest = await self._hold_known(ref)
        try:
            async with ingest.turn():
                while digest in self._committing:
                    await self._committing[digest].wait()
                self._committing[digest] = trio.Event()
                try:
                    return await self._commit(ingest, digest)
                finally:
                    self._committing.pop(digest).set()
        finally:
            self.release(ingest)

    async def _commit(self, ingest: Ingest, digest: Digest) -> BlobInfo:
        if digest in self._content:
            self._content.rely(digest)
            reason = stored_already(digest)
            await self._remove(ingest, reason)
            raise reason
        await verify(ingest, digest)
        with trio.CancelScope(shield=True):
            async with ingest.at_rest():
                await ingest.check_kept()
                await self._publish(ingest, digest)
                ingest.end(NotFound(f"{ingest.subject}: was committed as {digest}"))
                self._drop(ingest)
        info = self._content.info(digest)
        assert info is not None
        self._counted["committed"] += 1
        self._committed_bytes += info.size
        return info

    async def _publish(self, ingest: Ingest, digest: Digest) -> None:
        """In one trip to a thread, unless bytes have to be cut off first: trips would take longer than the disk."""
        file = await ingest.open_file() if ingest.is_ragged else None
        clear = partial(remove_committed, self._disk, ingest.path)
        naming = Naming(ingest.data, self._content.path(digest), file, are_durable=ingest.is_durable, clear=clear)
        try:
            await self._content.publish(digest, naming)
        except OSError as error:
            if not naming.is_lost:
                raise from_os(error, ingest.subject) from None
            failure = ingest.fall_back(error, ingest.offset)
            await ingest.cut()
            raise failure from None
        finally:
            ingest.close_file()

    async def rename(self, ref: str, new: str) -> None:
        """Call an idle ingest `new`; an idle one of that name is replaced. Atomic and durable.

        Raises NotFound; Invalid; Busy if either has a writer; AlreadyExists if `new` promises a digest that is stored:
        then the ingest is dropped. NoSpace, StorageFailed, ReadOnly.
        """
        new = parse_ref(new)
        self._refuse_read_only(self._find(ref).subject)
        ingest = await self._hold_known(ref)
        replaced: Ingest | None = None
        try:
            if new == ingest.meta.ref:
                return
            if new in self._ingests:
                replaced = await self._hold_known(new)
            await self._refuse_stored(ingest, promised_digest(new))
            with trio.CancelScope(shield=True):
                async with ingest.turn(), AsyncExitStack() as others:
                    if replaced is not None:
                        await others.enter_async_context(replaced.turn())
                    await self._rename(ingest, replaced, new)
        finally:
            self.release(ingest)
            if replaced is not None:
                self.release(replaced)

    async def _rename(self, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
        old = ingest.meta.ref
        if self._ingests.get(new) is not replaced:
            raise Busy(f"ingest {new!r}: was started or removed meanwhile; try again")
        self._ingests[new] = ingest
        try:
            await ingest.declare(ref=new)
        except ImgfsError:
            self._put_back(replaced, new)
            raise
        try:
            await self._move(ingest, replaced, new)
        finally:
            self._ingests.pop(old)

    def _put_back(self, replaced: Ingest | None, ref: str) -> None:
        if replaced is None:
            self._ingests.pop(ref)
        else:
            self._ingests[ref] = replaced

    async def _move(self, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
        """The record says it already; a crash from here on is made good at the next start."""
        if replaced is not None:
            replaced.end(Cancelled(f"{replaced.subject}: was replaced"))
            async with replaced.at_rest():
                await _on_disk(ingest, remove, self._disk, replaced.path)
        async with ingest.at_rest():
            final = self._directory / ref_id(new)
            await _on_disk(ingest, move, self._disk, ingest.path, final)
            ingest.path = final

    async def abort(self, ref: str) -> None:
        """Drop an ingest and its bytes; a live writer gets Cancelled. Works on a full disk.

        Raises NotFound, StorageFailed, ReadOnly.
        """
        ingest = self._find(ref)
        await self._content.check_writable(ingest.subject)
        async with ingest.lock:
            if ingest.gone is None:
                await self._remove(ingest, Cancelled(f"{ingest.subject}: was removed; start again"))
                self._counted["aborted"] += 1
                return
        raise NotFound(f"ingest {ref!r}: does not exist")

    async def reclaim(self, status: Status) -> None:
        """Drop an ingest if it is the one that `status` tells of and has no writer, not durably; at the first await
        nobody can resume it. Raises Busy, NotFound, StorageFailed, ReadOnly.
        """
        ingest = self._find(status.ref)
        self._refuse_read_only(ingest.subject)
        if ingest.is_held or ingest.gone is not None or ingest.meta.started != status.started:
            raise Busy(f"{ingest.subject}: is in use again")
        ingest.is_held = True
        async with ingest.turn():
            await self._remove(ingest, Cancelled(f"{ingest.subject}: was removed to make room"), drop)

    async def sync(self) -> None:
        """Make all bytes of all ingests durable: for the end of the daemon. Logs what the disk refuses."""
        for ingest in list(self._ingests.values()):
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
        ingest = next((one for one in self._ingests.values() if one.path.name == id), None)
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
        for ingest in list(self._ingests.values()):
            async with ingest.lock:
                if ingest.gone is None:
                    ingest.end(Cancelled(f"{ingest.subject}: its store was closed; open it again"))

    def release(self, ingest: Ingest) -> None:
        """The holder is done; for the writer."""
        ingest.touched.now()
        ingest.is_held = False
        ingest.released.set()

    async def let_go(self, ingest: Ingest, *, keep: bool) -> None:
        """The holder is done, and the bytes stay for the next, or go; for the copy. Never raises."""
        async with ingest.lock:
            if keep or ingest.gone is not None:
                ingest.close_file()
                self.release(ingest)
                return
            try:
                await self._remove(ingest, NotFound(f"{ingest.subject}: is not needed any more"), drop)
            except ImgfsError as error:
                _log.warning("copy not removed", extra={"ref": ingest.meta.ref, "error": error.message})

    def _find(self, ref: str) -> Ingest:
        ingest = self._ingests.get(parse_ref(ref))
        if ingest is None:
            raise NotFound(f"ingest {ref!r}: does not exist")
        return ingest

    async def _hold(self, ref: str, total: int | None, expected: Digest | None) -> Ingest:
        """Be the one holder of a ref, which is started if need be."""
        with trio.move_on_after(RELEASE_SECONDS):
            while True:
                ingest = self._ingests.get(ref)
                if ingest is None:
                    return await self._start(ref, total, expected)
                if not ingest.is_held and ingest.gone is None:
                    ingest.is_held, ingest.released = True, trio.Event()
                    return ingest
                await ingest.released.wait()
        raise Busy(f"ingest {ref!r}: another writer is at work; wait for it, or remove the ref")

    async def _hold_known(self, ref: str) -> Ingest:
        """As `_hold`, without starting one. Raises NotFound, also if the holder took it away."""
        ingest = self._find(ref)
        with trio.move_on_after(RELEASE_SECONDS):
            while ingest.is_held:
                await ingest.released.wait()
                ingest = self._find(ref)
            ingest.is_held, ingest.released = True, trio.Event()
            return ingest
        raise Busy(f"ingest {ref!r}: its writer is at work; close it first")

    async def _start(self, ref: str, total: int | None, expected: Digest | None) -> Ingest:
        """A new ingest, held by the caller; it is in the table before its directory is made, so that there is one."""
        now = time.time_ns()
        meta = Meta(ref, now, now, self._era, 0, total, expected)
        ingest = Ingest(self._disk, self._directory / ref_id(ref), meta, 0, self._nursery)
        self._refuse_shared(ingest)
        ingest.is_held = True
        self._ingests[ref] = ingest
        with trio.CancelScope(shield=True):
            async with ingest.lock:
                try:
                    await _on_disk(ingest, make, self._disk, ingest.path, meta)
                except ImgfsError as error:
                    ingest.end(error)
                    self._ingests.pop(ref)
                    self.release(ingest)
                    raise
        self._counted["started"] += 1
        return ingest

    def _refuse_shared(self, ingest: Ingest) -> None:
        """A ref whose renaming failed half-way keeps its directory until the next start."""
        if ingest.path.exists() and any(other.path == ingest.path for other in self._ingests.values()):
            raise StorageFailed(f"{ingest.subject}: a ref that could not be moved has its directory; start again")

    async def _refuse_stored(self, ingest: Ingest | None, digest: Digest | None) -> None:
        if digest is None or digest not in self._content:
            return
        self._content.rely(digest)
        reason = stored_already(digest)
        if ingest is not None:
            async with ingest.lock:
                if ingest.gone is None:
                    await self._remove(ingest, reason)
        raise reason

    async def _remove(self, ingest: Ingest, reason: ImgfsError, how: Callable[[Disk, Path], None] = remove) -> None:
        """The caller holds the ingest's lock. The ref is free once the directory is gone.

        Where the disk refuses that, the ref stays with its bytes, for another attempt; a writer is sent away anyhow.
        """
        ingest.end(reason)
        with trio.CancelScope(shield=True):
            async with ingest.at_rest():
                try:
                    await _on_disk(ingest, how, self._disk, ingest.path)
                finally:
                    self._drop(ingest)

    def _drop(self, ingest: Ingest) -> None:
        """Take an ended ingest from the table; what the disk did not let go is there as if somebody resumed it."""
        if ingest.data.exists():
            left = Ingest(self._disk, ingest.path, ingest.meta, ingest.offset, self._nursery)
            self._ingests[ingest.meta.ref] = left
        else:
            self._ingests.pop(ingest.meta.ref)
        ingest.released.set()

    def _refuse_read_only(self, subject: str) -> None:
        if self._content.is_read_only:
            raise begun_read_only(subject)


async def _on_disk(ingest: Ingest, work: Callable[[*Ts], None], *arguments: *Ts) -> None:
    """Do `work` in a thread; its OSError becomes the ingest's."""
    try:
        await run_disk(work, *arguments)
    except OSError as error:
        raise from_os(error, ingest.subject) from None
