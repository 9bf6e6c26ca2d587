"""One unfinished write: its bytes, its record and its running digest, kept consistent.

This module owns the directory `ingest/<id>/`: the changes of a writer, and the background work after them.
ingest_bytes.py and meta.py hold the parts. store.py decides who may write and when to commit.
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
"""A power cut loses at most this much of what was written: whichever limit is reached first."""

_BACKGROUND_SYNCS = trio.CapacityLimiter(8)
"""Ingests that are synced in the background at a time, over all stores, because other work needs the disk threads too.
"""


def no_progress() -> None:
    """Do nothing: the `progress` callback of an ingest that no thread writes to."""


class Ingest:
    """The state of one ref in this process. A caller holds `lock` for every operation on the bytes."""

    def __init__(self, disk: Disk, path: Path, meta: IngestMeta, offset: int, nursery: trio.Nursery) -> None:
        self.updated = meta.updated
        self.touched = LastTouch(meta.updated)
        """The last time a writer was closed or something was declared."""
        self.lock = trio.Lock()
        self.is_held = False
        self.released = trio.Event()
        self.ended = trio.Event()
        """Set when the ingest is removed or committed."""
        self.is_copy = False
        """Whether its writer stores bytes that another task hashes.

        Only the timer syncs such an ingest, and it is hashed only on request.
        """
        self.progress: Callable[[], object] = no_progress
        """Called before the offset is read. While threads write a copy, it calls `advance` or `lose`."""
        self._bytes = IngestBytes(disk, path / "data", offset)
        self._record = IngestRecord(disk, path / "meta", meta)
        self._prefix = PrefixDigest(self._bytes, self.meta.algorithm)
        self._syncing = Syncing(disk, self._bytes, self._record, self._prefix)
        self._nursery = nursery
        self._is_recorder_running = False
        self._is_hasher_running = False
        self._record_now = trio.Event()

    @property
    def path(self) -> Path:
        """The ingest's directory."""
        return self._bytes.path.parent

    @property
    def data(self) -> Path:
        """The file of the bytes."""
        return self._bytes.path

    @property
    def meta(self) -> IngestMeta:
        """The current record."""
        return self._record.meta

    @property
    def offset(self) -> int:
        """The number of valid bytes."""
        return self._bytes.offset

    @property
    def running(self) -> RunningDigest:
        """The digest of a prefix of the bytes."""
        return self._prefix.running

    @property
    def subject(self) -> str:
        """The name of the ingest in messages."""
        return self.meta.subject

    @property
    def generation(self) -> int:
        """A number that changes whenever bytes are removed."""
        return self._bytes.generation

    @property
    def is_ragged(self) -> bool:
        """Whether the file may have bytes beyond `offset`."""
        return self._bytes.is_ragged

    @property
    def gone(self) -> ImgfsError | None:
        """Why the ingest was ended; None while it is alive."""
        return self._bytes.gone

    @property
    def failed(self) -> ImgfsError | None:
        """The failed sync, until a writer continues after it."""
        return self._syncing.failed

    @property
    def is_durable(self) -> bool:
        """Whether all bytes so far are on disk, and the file has no others."""
        return self._syncing.is_durable

    @property
    def goes_ahead(self) -> bool:
        """Whether a commit may make bytes and name durable together: the ingest is small, and none of it was promised
        to survive a power cut.
        """
        return self.offset <= AHEAD_BYTES and not self._record.is_name_durable and not self.is_durable

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[Ingest]:
        """Hold the lock and yield the ingest. Raises the reason if it was ended."""
        async with self.lock:
            self.check_alive()
            yield self

    def check_alive(self) -> None:
        """Raise the reason if the ingest was ended."""
        self._bytes.check_alive()

    async def open_file(self) -> int:
        """Return the descriptor of the data, truncated to `offset`. Raises NoSpace, StorageFailed."""
        try:
            return await self._bytes.open()
        except OSError as error:
            raise from_os(error, self.subject) from None

    def close_file(self) -> None:
        """Close the descriptor. The caller ensures that no thread uses it."""
        self._bytes.close()

    def close_behind(self) -> None:
        """Close the file after its writer was closed.

        Sync it in the background first, so that a later commit need not wait.

        The sync uses the writer's descriptor, which receives every write error. It is left to the commit or the timer
        if the disk is busy already, or if the commit makes bytes and name durable together.
        """
        file = self._bytes.give_away()
        if file is None:
            return
        waits = not self.is_ragged and not self.is_durable and not self.goes_ahead
        if self.gone is None and waits and not self.is_copy:
            with suppress(trio.WouldBlock):
                _BACKGROUND_SYNCS.acquire_on_behalf_of_nowait(file)
                self._nursery.start_soon(self._sync_in_background, file)
                return
        os.close(file)

    async def _sync_in_background(self, file: int) -> None:
        """Sync and close a descriptor from `close_behind`, which holds a slot of `_BACKGROUND_SYNCS`."""
        try:
            await self._syncing.sync_in_background(file)
            if self.failed is not None:
                async with self.lock:
                    await self.cut()
        finally:
            os.close(file)
            _BACKGROUND_SYNCS.release_on_behalf_of(file)

    async def append(self, piece: bytes | memoryview) -> None:
        """Write at the end. Bytes that were written before an error are kept. Raises NoSpace, StorageFailed."""
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
        """Record that a thread has written up to `offset` and knows the digest of a prefix.

        Returns False if bytes were removed since `generation`.
        """
        if generation != self._bytes.generation:
            return False
        if offset > self._bytes.offset:
            self._bytes.offset, self.updated = offset, time.time_ns()
        if running is not None and running.algorithm == self.meta.algorithm:
            self._prefix.offer(running)
        self._follow_up()
        return True

    def lose(self) -> None:
        """Record that a thread has truncated the file to nothing. As `restart`, but without a change of the record."""
        if self.offset:
            self._reset()

    def _reset(self) -> None:
        self._bytes.cut_back(0)
        self._prefix.reset(self.meta.algorithm)
        self._syncing.failed = None

    async def restart(self) -> None:
        """Drop the bytes and their digest; total and expected stay.

        The record is written first, because after a crash new bytes must not be found under the record of the old ones.
        Until that write is done, the old bytes are still complete: a sync that begins meanwhile is one of the old
        bytes, and records nothing afterwards.
        """
        async with self._record.lock:
            if self.meta.durable:
                await self._record.write(msgspec.structs.replace(self.meta, durable=0))
            self._reset()
        await self.open_file()
        self.updated = time.time_ns()

    async def cut(self) -> None:
        """Truncate the bytes that a failed sync gave up, because a start in the same era trusts the size of the file.

        The caller holds the lock. A disk error is logged.
        """
        if not self.is_ragged or self.gone is not None:
            return
        was_open = self._bytes.is_open
        try:
            await self.open_file()
        except ImgfsError as error:
            _log.warning("bytes that were given up stay on disk", extra={"ref": self.meta.ref, "error": error.message})
        finally:
            if not was_open:
                self.close_file()

    async def check_kept(self) -> None:
        """Raise the failed sync, if no writer has continued after it, and truncate the bytes that it gave up.

        The caller holds the lock.
        """
        if self.failed is not None:
            await self.cut()
            raise self.failed

    def clear_failure(self) -> None:
        """Forget the failed sync: a writer sends the lost bytes again."""
        self._syncing.failed = None

    def fall_back(self, error: OSError) -> ImgfsError:
        """Give up the bytes that a commit could not sync, and return the error to raise.

        The caller prevents other syncs and changes of the record meanwhile.
        """
        return self._syncing.fall_back(error, self.offset)

    def resume(self, *, as_copy: bool) -> None:
        """Prepare for a new writer: it may send the bytes of a failed sync again, and the prefix is hashed in the
        background.
        """
        self.clear_failure()
        self.is_copy = as_copy
        self._follow_up()

    async def record(self) -> None:
        """Make the bytes so far durable and record that. Raises NoSpace, StorageFailed.

        A failed sync is final: the bytes since the last recorded sync are given up, and `failed` has the error.
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
        """Change the record durably.

        The algorithm of the expected digest is used for hashing from then on. Raises TooLarge.
        """
        given = {"ref": ref, "total": total, "expected": expected}
        async with self._record.lock:
            self.check_alive()
            if isinstance(total, int) and total < self.offset:
                raise TooLarge(f"{self.subject}: has {self.offset} bytes already, more than the {total} declared now")
            changed = {name: value for name, value in given.items() if value is not UNSET}
            try:
                await self._record.write(msgspec.structs.replace(self.meta, **changed))
            except ImgfsError:
                # The new record may be on disk. The next start would believe its ref and remove the other ingest of
                # that ref, so write the old record again.
                with suppress(ImgfsError):
                    await self._record.write(self.meta)
                raise
        self.touched.now()
        self.hash_with(self.meta.algorithm)

    def sync_paused(self) -> AbstractAsyncContextManager[None]:
        """Prevent syncs and changes of the record in this context, to move or remove the directory."""
        return self._syncing.paused()

    def set_path(self, path: Path) -> None:
        """Record the new path of the directory."""
        self._bytes.path, self._record.path = path / "data", path / "meta"

    async def on_disk(self, work: Callable[[*Ts], None], *arguments: *Ts) -> None:
        """Run `work` in a thread, and convert its OSError to an error that names this ingest."""
        try:
            await run_disk(work, *arguments)
        except OSError as error:
            raise from_os(error, self.subject) from None

    def end(self, reason: ImgfsError) -> None:
        """Make every later call fail with `reason`. The owner sets `released` after the directory is gone."""
        self._bytes.end(reason)
        self.ended.set()
        if not self.is_held:
            self.released = trio.Event()
        self._record_now.set()

    def hash_with(self, algorithm: str) -> None:
        """Use this algorithm for the running digest; a change of the algorithm starts again at byte 0."""
        if self.running.algorithm != algorithm:
            self._prefix.reset(algorithm)
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
        """Start the background tasks for what lags behind the offset: hashing a resumed prefix, and recording syncs."""
        if self._prefix.is_behind and not self._is_hasher_running and not self.is_copy:
            self._is_hasher_running = True
            self._nursery.start_soon(self._hash_in_background)
        if self.meta.durable < self.offset and not self._is_recorder_running:
            self._is_recorder_running = True
            self._nursery.start_soon(self._record_in_background)
        if self.offset - self.meta.durable >= RECORD_BYTES and not self.is_copy:
            self._record_now.set()

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
                    await self._record_now.wait()
                self._record_now = trio.Event()
                if self.gone is None:
                    await self.record()
        except ImgfsError as error:
            _log.warning("recording an ingest failed", extra={"ref": self.meta.ref, "error": error.message})
            async with self.lock:
                await self.cut()
        finally:
            self._is_recorder_running = False
