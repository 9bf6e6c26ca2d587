"""One unfinished write: its bytes, its record and its running digest, in step.

Owns `ingest/<id>/`: what a writer changes, and what is synced in the background. ingest_bytes.py owns the bytes, the
digest of the prefix and the syncs; meta.py owns the record; store.py decides who may write and commits.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVarTuple

import msgspec
import trio
from msgspec import UNSET, UnsetType

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.content.age import LastTouch
from imgfs.content.ingests.ingest_bytes import IngestBytes, PrefixDigest, Syncing
from imgfs.content.ingests.meta import IngestMeta, IngestRecord
from imgfs.content.running_digest import RunningDigest
from imgfs.content.unproven import AHEAD_BYTES
from imgfs.disk.calls import Disk
from imgfs.errors import ImgfsError, OffsetMismatch, TooLarge, from_os
from imgfs.oci.digest import Digest

Ts = TypeVarTuple("Ts")

_log = logging.getLogger("imgfs.content.ingest")

RECORD_BYTES = 64 << 20
RECORD_SECONDS = 5.0
"""A crash of the machine costs at most so much of what was written."""

_BEHIND = trio.CapacityLimiter(8)
"""Ingests that are synced behind their writers at a time, of all stores: the disk's threads are for others too."""


def idle() -> None:
    """The `progress` of an ingest that no thread is writing to."""


class Ingest:
    """The state of one ref in this process. Its owner holds `lock` around everything that touches the bytes."""

    def __init__(self, disk: Disk, path: Path, meta: IngestMeta, offset: int, nursery: trio.Nursery) -> None:
        self.updated = meta.updated
        self.touched = LastTouch(meta.updated)
        """When its last holder let it go, or somebody declared something."""
        self.lock = trio.Lock()
        self.is_held = False
        self.released = trio.Event()
        self.ended = trio.Event()
        """Set when it is gone."""
        self.is_copy = False
        """Whether its writer keeps what somebody else hashes: then only the clock syncs, and nobody hashes unasked."""
        self.progress: Callable[[], object] = idle
        """Called before anybody looks at the offset; while threads write a copy, it calls `advance` or `lose`."""
        self._bytes = IngestBytes(disk, path / "data", offset)
        self._record = IngestRecord(disk, path / "meta", meta)
        self._prefix = PrefixDigest(self._bytes, self.meta.algorithm)
        self._syncing = Syncing(disk, self._bytes, self._record, self._prefix)
        self._nursery = nursery
        self._is_recorder_running = False
        self._is_hasher_running = False
        self._much = trio.Event()

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._bytes.path.parent

    @property
    def data(self) -> Path:
        """The file of the bytes."""
        return self._bytes.path

    @property
    def meta(self) -> IngestMeta:
        """The record."""
        return self._record.meta

    @property
    def offset(self) -> int:
        """How many bytes there are."""
        return self._bytes.offset

    @property
    def running(self) -> RunningDigest:
        """The digest of a prefix of the bytes."""
        return self._prefix.running

    @property
    def subject(self) -> str:
        """What messages call it."""
        return self.meta.subject

    @property
    def generation(self) -> int:
        """Another one than before, if bytes were taken away since."""
        return self._bytes.generation

    @property
    def is_ragged(self) -> bool:
        """Whether the file may hold bytes beyond `offset`."""
        return self._bytes.is_ragged

    @property
    def gone(self) -> ImgfsError | None:
        """Why there is nothing to write to any more."""
        return self._bytes.gone

    @property
    def failed(self) -> ImgfsError | None:
        """The failed sync that nobody has continued after yet."""
        return self._syncing.failed

    @property
    def is_durable(self) -> bool:
        """Whether all bytes so far are on disk, and nothing else is in the file."""
        return self._syncing.is_durable

    @property
    def goes_ahead(self) -> bool:
        """Whether a commit may make its bytes and its name durable together: they are few, and nothing of it was
        promised to be there after a power cut."""
        return self.offset <= AHEAD_BYTES and not self._record.is_rooted and not self.is_durable

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[Ingest]:
        """The ingest, alive, to one call at a time. Raises why it is gone."""
        async with self.lock:
            self.check_alive()
            yield self

    def check_alive(self) -> None:
        """Raise why it is gone, if it is."""
        self._bytes.check_alive()

    async def open_file(self) -> int:
        """The descriptor of the data, cut to `offset` if bytes beyond it are left. Raises the disk's error."""
        try:
            return await self._bytes.open()
        except OSError as error:
            raise from_os(error, self.subject) from None

    def close_file(self) -> None:
        """Let the descriptor go; the owner sees to it that nobody uses it."""
        self._bytes.close()

    def rest(self) -> None:
        """Its writer is done: the file is closed, once what was written is synced, which a commit then finds done.

        By the descriptor that it was written with, which hears of every failure. Where the disk has much to do already,
        or the commit waits no longer for the bytes and the name than for the name, that is left to it, or to the clock.
        """
        file = self._bytes.give_away()
        if file is None:
            return
        waits = not self.is_ragged and not self.is_durable and not self.goes_ahead
        if self.gone is None and waits and not self.is_copy:
            with suppress(trio.WouldBlock):
                _BEHIND.acquire_on_behalf_of_nowait(file)
                self._nursery.start_soon(self._sync_behind, file)
                return
        os.close(file)

    async def _sync_behind(self, file: int) -> None:
        """For a descriptor that `rest` gives away, with its place in `_BEHIND`."""
        try:
            await self._syncing.sync_behind(file)
            if self.failed is not None:
                async with self.lock:
                    await self.cut()
        finally:
            os.close(file)
            _BEHIND.release_on_behalf_of(file)

    async def append(self, piece: bytes | memoryview) -> None:
        """Write at the end. What was written before an error stays and counts. Raises NoSpace, StorageFailed."""
        file, kept, running = await self.open_file(), self._bytes, self.running
        generation, start = kept.generation, kept.offset
        hashes = running.position == start
        written, longer, error = await run_cpu(self._append, file, piece, running if hashes else None, start)
        if generation != kept.generation:
            kept.is_ragged = True
            self.check_alive()
            raise self.failed or OffsetMismatch(f"{self.subject}: was restarted meanwhile")
        kept.offset += written
        self.updated = time.time_ns()
        if longer is not None:
            self._prefix.replace(running, longer)
        self._follow_up()
        if error is not None:
            kept.is_ragged = True
            raise from_os(error, self.subject)

    def _append(
        self, file: int, piece: bytes | memoryview, running: RunningDigest | None, offset: int
    ) -> tuple[int, RunningDigest | None, OSError | None]:
        view = memoryview(piece)
        written, failure = self._bytes.write(file, view, offset)
        return written, running.after(view[:written]) if running is not None else None, failure

    def advance(self, generation: int, offset: int, running: RunningDigest | None) -> bool:
        """A thread has written up to `offset`, and knows the digest of a prefix; False if bytes were taken away since
        `generation`."""
        if generation != self._bytes.generation:
            return False
        if offset > self._bytes.offset:
            self._bytes.offset, self.updated = offset, time.time_ns()
        if running is not None and running.algorithm == self.meta.algorithm:
            self._prefix.offer(running)
        self._follow_up()
        return True

    def lose(self) -> None:
        """A thread has cut the file to nothing; what follows is as after `restart`, but for the record on disk."""
        if self.offset:
            self._begin_again()

    def _begin_again(self) -> None:
        self._bytes.cut_back(0)
        self._prefix.begin_again(self.meta.algorithm)
        self._syncing.failed = None

    async def restart(self) -> None:
        """Drop the bytes and their digest; total and expected stay.

        The record goes first: a crash must not find new bytes under the word of the old ones. Until it is written they
        are all there, so a sync that begins meanwhile is one of them, and records nothing afterwards.
        """
        async with self._record.lock:
            if self.meta.durable:
                await self._record.write(msgspec.structs.replace(self.meta, durable=0))
            self._begin_again()
        await self.open_file()
        self.updated = time.time_ns()

    async def cut(self) -> None:
        """Take what a failed sync gave up out of the file too, because a start in the same era believes what is there.

        The caller holds the lock. What the disk refuses here is logged.
        """
        if not self.is_ragged or self.gone is not None:
            return
        was_open = self._bytes.is_open
        try:
            await self.open_file()
        except ImgfsError as error:
            _log.warning("bytes that were given up stay", extra={"ref": self.meta.ref, "error": error.message})
        finally:
            if not was_open:
                self.close_file()

    async def check_kept(self) -> None:
        """Raise the failed sync that nobody has continued after, with what it gave up out of the file.

        The caller holds the lock.
        """
        if self.failed is not None:
            await self.cut()
            raise self.failed

    def go_on(self) -> None:
        """Somebody sends again what a failed sync took."""
        self._syncing.failed = None

    def fall_back(self, error: OSError) -> ImgfsError:
        """A commit could not sync the bytes: give up what was not recorded; returns what to raise. Nobody else syncs or
        records meanwhile."""
        return self._syncing.fall_back(error, self.offset)

    def resume(self, *, as_copy: bool) -> None:
        """Somebody opened it: bytes that a failed sync took are his to send again, and the prefix is hashed."""
        self.go_on()
        self.is_copy = as_copy
        self._follow_up()

    async def record(self) -> None:
        """Make the bytes so far durable, and record that they are. Raises NoSpace, StorageFailed.

        A failed sync is final: the bytes since the last good one are given up, and `failed` says so.
        """
        self.progress()
        await self._syncing.record()

    async def declare(
        self,
        *,
        ref: str | UnsetType = UNSET,
        total: int | UnsetType | None = UNSET,
        expected: Digest | UnsetType | None = UNSET,
    ) -> None:
        """Change the record, durably; the expected digest's algorithm is hashed from then on. Raises TooLarge."""
        given = {"ref": ref, "total": total, "expected": expected}
        async with self._record.lock:
            self.check_alive()
            if isinstance(total, int) and total < self.offset:
                raise TooLarge(f"{self.subject}: has {self.offset} bytes already, more than the {total} declared now")
            changed = {name: value for name, value in given.items() if value is not UNSET}
            try:
                await self._record.write(msgspec.structs.replace(self.meta, **changed))
            except ImgfsError:
                # It may be on disk, and a start would believe it: that this is another's ref, which goes for it.
                with suppress(ImgfsError):
                    await self._record.write(self.meta)
                raise
        self.touched.now()
        self.hash_with(self.meta.algorithm)

    def at_rest(self) -> AbstractAsyncContextManager[None]:
        """While this is held, nobody syncs or records: for moving and removing the directory."""
        return self._syncing.paused()

    def moved(self, path: Path) -> None:
        """Its directory is called `path` now."""
        self._bytes.path, self._record.path = path / "data", path / "meta"

    async def on_disk(self, work: Callable[[*Ts], None], *arguments: *Ts) -> None:
        """Do `work` in a thread; its OSError is told of this ingest."""
        try:
            await run_disk(work, *arguments)
        except OSError as error:
            raise from_os(error, self.subject) from None

    def end(self, reason: ImgfsError) -> None:
        """There is nothing to write to any more; whoever tries is told `reason`. The owner sets `released` once the
        directory is gone."""
        self._bytes.end(reason)
        self.ended.set()
        if not self.is_held:
            self.released = trio.Event()
        self._much.set()

    def hash_with(self, algorithm: str) -> None:
        """See to it that the running digest is of this algorithm; another one begins again at byte 0."""
        if self.running.algorithm != algorithm:
            self._prefix.begin_again(algorithm)
            self._follow_up()

    async def catch_up(self) -> None:
        """Hash what is not hashed yet, from the file, at disk speed. Raises StorageFailed."""
        try:
            await self._prefix.catch_up()
        except OSError as error:
            raise from_os(error, self.subject) from None

    async def whole_digest(self) -> Digest:
        """Return the digest of all bytes so far. Raises StorageFailed, and the reason if the ingest is gone."""
        await self.catch_up()
        self.check_alive()
        return self.running.digest

    def _follow_up(self) -> None:
        """Set going what lags behind the offset: the digest of a resumed prefix, and the record of the last sync."""
        if self._prefix.is_behind and not self._is_hasher_running and not self.is_copy:
            self._is_hasher_running = True
            self._nursery.start_soon(self._hash_in_background)
        if self.meta.durable < self.offset and not self._is_recorder_running:
            self._is_recorder_running = True
            self._nursery.start_soon(self._record_in_background)
        if self.offset - self.meta.durable >= RECORD_BYTES and not self.is_copy:
            self._much.set()

    async def _hash_in_background(self) -> None:
        try:
            await self.catch_up()
        except ImgfsError as error:
            _log.warning("hashing a resumed ingest failed", extra={"ref": self.meta.ref, "error": error.message})
        finally:
            self._is_hasher_running = False

    async def _record_in_background(self) -> None:
        try:
            while self.gone is None and self.meta.durable < self.offset:
                with trio.move_on_after(RECORD_SECONDS):
                    await self._much.wait()
                self._much = trio.Event()
                if self.gone is None:
                    await self.record()
        except ImgfsError as error:
            _log.warning("recording an ingest failed", extra={"ref": self.meta.ref, "error": error.message})
            async with self.lock:
                await self.cut()
        finally:
            self._is_recorder_running = False
