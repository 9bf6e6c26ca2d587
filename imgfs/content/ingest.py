"""One unfinished write: its bytes, its record and its running digest.

Owns `ingest/<id>/data` and `meta`, the offset, and what is believed after a crash. Who may write, and the commit, are
ingests.py's. The invariants: the file holds at least `offset` bytes; the first `meta.durable` of them were synced
before that was recorded; `running` is of a prefix of them. Whatever takes bytes away changes `generation`, so that a
sync or hash that began before counts for nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio
from msgspec import UNSET, UnsetType

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.content.age import LastTouch
from imgfs.content.disk import Disk
from imgfs.content.meta import Meta, write_again
from imgfs.content.running import RunningDigest
from imgfs.errors import ImgfsError, OffsetMismatch, TooLarge, from_os
from imgfs.oci.digest import Digest

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

    def __init__(self, disk: Disk, path: Path, meta: Meta, offset: int, nursery: trio.Nursery) -> None:
        self.path = path
        self.meta = meta
        self.offset: int = offset
        self.updated = meta.updated
        self.touched = LastTouch(meta.updated)
        """When its last holder let it go, or somebody declared something."""
        self.lock = trio.Lock()
        self.is_held = False
        self.released = trio.Event()
        self.gone: ImgfsError | None = None
        """Why there is nothing to write to any more."""
        self.ended = trio.Event()
        """Set when it is gone."""
        self.failed: ImgfsError | None = None
        """The failed sync that nobody has continued after yet."""
        self.is_copy = False
        """Whether its writer keeps what somebody else hashes: then only the clock syncs, and nobody hashes unasked."""
        self.is_rooted = meta.durable > 0
        """Whether the directory's own name is durable."""
        self.progress: Callable[[], object] = idle
        """Called before anybody looks at the offset; while threads write a copy, it calls `advance` or `lose`."""
        self._disk = disk
        self._nursery = nursery
        self._syncing = trio.Lock()
        self._recording = trio.Lock()
        self._hashing = trio.Lock()
        self._generation = 0
        self._file: int | None = None
        self.is_ragged = True
        """Whether the file may hold bytes beyond `offset`: known when it was opened."""
        self._cuts = 0
        self._is_recorded = True
        """Whether the record on disk is `meta`: not where writing it anew failed, for it may be there all the same."""
        self._synced: tuple[int, int, int] | None = None
        """The file as it was when its bytes were synced last, as `_shape` tells it."""
        self._is_recorder_running = False
        self._is_hasher_running = False
        self._much = trio.Event()
        self.running: RunningDigest = RunningDigest.start(self._algorithm)

    @property
    def data(self) -> Path:
        """The file of the bytes."""
        return self.path / "data"

    @property
    def subject(self) -> str:
        """What messages call it."""
        return f"ingest {self.meta.ref!r}"

    @property
    def generation(self) -> int:
        """Another one than before, if bytes were taken away since."""
        return self._generation

    @property
    def is_durable(self) -> bool:
        """Whether all bytes so far are on disk, and nothing else is in the file."""
        return not self.is_ragged and self._synced == self._shape

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Another one whenever the file changed."""
        return self._generation, self._cuts, self.offset

    @property
    def _algorithm(self) -> str:
        return self.meta.expected.algorithm if self.meta.expected else "sha256"

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[Ingest]:
        """The ingest, alive, to one call at a time. Raises why it is gone."""
        async with self.lock:
            self.check_alive()
            yield self

    def check_alive(self) -> None:
        """Raise why it is gone, if it is."""
        if self.gone is not None:
            raise self.gone

    async def open_file(self) -> int:
        """The descriptor of the data, cut to `offset` if bytes beyond it are left. Raises the disk's error."""
        try:
            if self._file is None:
                self._file = await run_disk(self._disk.open, self.data)
                self.is_ragged = os.fstat(self._file).st_size != self.offset
            if self.is_ragged:
                await run_disk(self._disk.truncate, self._file, self.offset)
                self.is_ragged = False
                self._cuts += 1
            return self._file
        except OSError as error:
            raise from_os(error, self.subject) from None

    def close_file(self) -> None:
        """Let the descriptor go; the owner sees to it that nobody uses it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def rest(self) -> None:
        """Its writer is done: the file is closed, once what was written is synced, which a commit then finds done.

        By the descriptor that it was written with, which hears of every failure. Where the disk has much to do already,
        that is left to the commit, or to the clock.
        """
        file, self._file = self._file, None
        if file is None:
            return
        if self.gone is None and not self.is_ragged and not self.is_durable and not self.is_copy:
            with suppress(trio.WouldBlock):
                _BEHIND.acquire_on_behalf_of_nowait(file)
                self._nursery.start_soon(self._sync_behind, file)
                return
        os.close(file)

    async def append(self, piece: bytes | memoryview) -> None:
        """Write at the end. What was written before an error stays and counts. Raises NoSpace, StorageFailed."""
        file = await self.open_file()
        generation, start, running = self._generation, self.offset, self.running
        hashes = running.position == start
        written, longer, error = await run_cpu(self._append, file, piece, running if hashes else None, start)
        if generation != self._generation:
            self.is_ragged = True
            self.check_alive()
            raise self.failed or OffsetMismatch(f"{self.subject}: was restarted meanwhile")
        self.offset += written
        self.updated = time.time_ns()
        if longer is not None and self.running is running:
            self.running = longer
        self._follow_up()
        if error is not None:
            self.is_ragged = True
            raise from_os(error, self.subject)

    def _append(
        self, file: int, piece: bytes | memoryview, running: RunningDigest | None, offset: int
    ) -> tuple[int, RunningDigest | None, OSError | None]:
        view, written = memoryview(piece), 0
        failure: OSError | None = None
        try:
            while written < len(view):
                written += self._disk.write(file, view[written:], offset + written)
        except OSError as error:
            failure = error
        return written, running.after(view[:written]) if running is not None else None, failure

    def advance(self, generation: int, offset: int, running: RunningDigest | None) -> bool:
        """A thread has written up to `offset`, and knows the digest of a prefix; False if bytes were taken away since
        `generation`."""
        if generation != self._generation:
            return False
        if offset > self.offset:
            self.offset, self.updated = offset, time.time_ns()
        if running is not None and running.algorithm == self._algorithm and running.position > self.running.position:
            self.running = running
        self._follow_up()
        return True

    def lose(self) -> None:
        """A thread has cut the file to nothing; what follows is as after `restart`, but for the record on disk."""
        if self.offset:
            self._generation += 1
            self.offset, self.is_ragged, self.failed = 0, True, None
            self.running = RunningDigest.start(self._algorithm)

    async def restart(self) -> None:
        """Drop the bytes and their digest; total and expected stay.

        The record goes first: a crash must not find new bytes under the word of the old ones. Until it is written they
        are all there, so a sync that begins meanwhile is one of them, and records nothing afterwards.
        """
        async with self._recording:
            if self.meta.durable:
                await self._write_meta(msgspec.structs.replace(self.meta, durable=0))
            self._generation += 1
            self.offset, self.is_ragged, self.failed = 0, True, None
            self.running = RunningDigest.start(self._algorithm)
        await self.open_file()
        self.updated = time.time_ns()

    async def cut(self) -> None:
        """Take what a failed sync gave up out of the file too, because a start in the same era believes what is there.

        The caller holds the lock. What the disk refuses here is logged.
        """
        if not self.is_ragged or self.gone is not None:
            return
        was_open = self._file is not None
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

    def resume(self, *, as_copy: bool) -> None:
        """Somebody opened it: bytes that a failed sync took are his to send again, and the prefix is hashed."""
        self.failed = None
        self.is_copy = as_copy
        self._follow_up()

    async def record(self) -> None:
        """Make the bytes so far durable, and record that they are. Raises NoSpace, StorageFailed.

        A failed sync is final: the bytes since the last good one are given up, and `failed` says so.
        """
        self.progress()
        generation, offset = self._generation, self.offset
        if offset == self.meta.durable and self.is_rooted and self._is_recorded:
            return
        async with self._syncing:
            if generation == self._generation and not self.is_durable:
                await self._sync(offset)
        async with self._recording:
            if generation == self._generation and self.gone is None:
                await self._write_meta(msgspec.structs.replace(self.meta, durable=offset))

    async def _sync(self, offset: int) -> None:
        """The caller holds `_syncing`."""
        try:
            file = os.dup(self._file) if self._file is not None else await run_disk(self._disk.open, self.data)
            try:
                await self._fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            self.check_alive()
            raise await self._give_up(error, offset) from None

    async def _fsync(self, file: int) -> None:
        shape = self._shape
        await run_disk(self._disk.fsync, file)
        self._synced = shape

    async def _sync_behind(self, file: int) -> None:
        """For a descriptor that `rest` gives away, with its place in `_BEHIND`."""
        generation = self._generation
        try:
            async with self._syncing:
                if generation == self._generation and not self.is_durable:
                    await self._fsync_behind(file)
            if self.failed is not None:
                async with self.lock:
                    await self.cut()
        finally:
            os.close(file)
            _BEHIND.release_on_behalf_of(file)

    async def _fsync_behind(self, file: int) -> None:
        """The caller holds `_syncing`, until it is known what the failure costs: a commit that waits for it has to hear
        of that."""
        try:
            await self._fsync(file)
        except OSError as error:
            # The disk tells of a failure once: it may be that of bytes which took the place of the old ones meanwhile.
            if self.gone is None:
                await self._give_up(error, self.offset)

    async def _give_up(self, error: OSError, offset: int) -> ImgfsError:
        """As `fall_back`, when the record that is being written is: it must not vouch for more than is left then."""
        with trio.CancelScope(shield=True):
            await self._recording.acquire()
        try:
            return self.fall_back(error, offset)
        finally:
            self._recording.release()

    def fall_back(self, error: OSError, offset: int) -> ImgfsError:
        """A sync of the first `offset` bytes failed: give up what was not recorded; returns what to raise.

        The caller holds `_recording`.
        """
        durable = self.meta.durable
        failure = from_os(error, self.subject)
        self.failed = type(failure)(
            f"{failure.message}; bytes {durable} to {offset} are lost, continue at byte {durable}"
        )
        self._generation += 1
        self.offset, self.is_ragged = durable, True
        if self.running.position > durable:
            self.running = RunningDigest.start(self._algorithm)
        _log.warning("fsync failed, ingest falls back", extra={"ref": self.meta.ref, "offset": durable})
        return self.failed

    async def declare(
        self,
        *,
        ref: str | UnsetType = UNSET,
        total: int | UnsetType | None = UNSET,
        expected: Digest | UnsetType | None = UNSET,
    ) -> None:
        """Change the record, durably; the expected digest's algorithm is hashed from then on. Raises TooLarge."""
        given = {"ref": ref, "total": total, "expected": expected}
        async with self._recording:
            self.check_alive()
            if isinstance(total, int) and total < self.offset:
                raise TooLarge(f"{self.subject}: has {self.offset} bytes already, more than the {total} declared now")
            changed = {name: value for name, value in given.items() if value is not UNSET}
            try:
                await self._write_meta(msgspec.structs.replace(self.meta, **changed))
            except ImgfsError:
                # It may be on disk, and a start would believe it: that this is another's ref, which goes for it.
                with suppress(ImgfsError):
                    await self._write_meta(self.meta)
                raise
        self.touched.now()
        self.hash_with(self._algorithm)

    async def _write_meta(self, meta: Meta) -> None:
        """The caller holds `_recording`."""
        meta = msgspec.structs.replace(meta, updated=time.time_ns())
        try:
            await run_disk(write_again, self._disk, self.path / "meta", meta)
            if not self.is_rooted:
                await run_disk(self._disk.fsync_directory, self.path.parent)
                self.is_rooted = True
        except OSError as error:
            self._is_recorded = False
            raise from_os(error, self.subject) from None
        self.meta, self._is_recorded = meta, True

    @asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[None]:
        """While this is held, nobody syncs or records: for moving and removing the directory."""
        async with self._syncing, self._recording:
            yield

    def end(self, reason: ImgfsError) -> None:
        """There is nothing to write to any more; whoever tries is told `reason`. The owner sets `released` once the
        directory is gone."""
        self.gone = reason
        self.ended.set()
        if not self.is_held:
            self.released = trio.Event()
        self._generation += 1
        self._much.set()
        self.close_file()

    def hash_with(self, algorithm: str) -> None:
        """See to it that the running digest is of this algorithm; another one begins again at byte 0."""
        if self.running.algorithm != algorithm:
            self.running = RunningDigest.start(algorithm)
            self._follow_up()

    async def catch_up(self) -> None:
        """Hash what is not hashed yet, from the file, at disk speed. Raises StorageFailed."""
        async with self._hashing:
            if self.gone is not None or self.running.position >= self.offset:
                return
            try:
                file = os.open(self.data, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    await self._hash_from(file)
                finally:
                    os.close(file)
            except OSError as error:
                raise from_os(error, self.subject) from None

    async def whole_digest(self) -> Digest:
        """The digest of all bytes so far. Raises StorageFailed."""
        await self.catch_up()
        return self.running.digest

    async def _hash_from(self, file: int) -> None:
        while self.gone is None and self.running.position < self.offset:
            generation, running, end = self._generation, self.running, self.offset
            try:
                longer = await run_cpu(running.read_on, file, end)
            except OSError:
                if generation == self._generation:
                    raise
                continue
            if generation == self._generation and self.running is running:
                self.running = longer

    def _follow_up(self) -> None:
        """Set going what lags behind the offset: the digest of a resumed prefix, and the record of the last sync."""
        if self.running.position < self.offset and not self._is_hasher_running and not self.is_copy:
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
