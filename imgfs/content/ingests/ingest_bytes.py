"""The bytes of an unfinished write: the file `data`, as far as it counts."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.content.ingests.meta import IngestRecord
from imgfs.content.running_digest import RunningDigest
from imgfs.disk.calls import Disk
from imgfs.errors import ImgfsError, from_os


class IngestBytes:
    """A file of which the first `offset` bytes count; so many it has at least.

    Whatever takes bytes away changes `generation`: a sync or hash that began before counts for nothing. Methods raise
    OSError.
    """

    def __init__(self, disk: Disk, path: Path, offset: int) -> None:
        self.path = path
        self.offset: int = offset
        self.generation = 0
        self.is_ragged = True
        """Whether the file may hold bytes beyond `offset`: known when it was opened."""
        self.gone: ImgfsError | None = None
        """Why there is nothing to write to any more."""
        self._disk = disk
        self._cuts = 0
        self._file: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is open."""
        return self._file is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Another one whenever the file changed."""
        return self.generation, self._cuts, self.offset

    async def open(self) -> int:
        """The descriptor, of a file that is cut to `offset` if bytes beyond it are left."""
        if self._file is None:
            self._file = await run_disk(self._disk.open, self.path)
            self.is_ragged = os.fstat(self._file).st_size != self.offset
        if self.is_ragged:
            await run_disk(self._disk.truncate, self._file, self.offset)
            self.is_ragged = False
            self._cuts += 1
        return self._file

    async def open_another(self) -> int:
        """A descriptor of the caller's own, which hears of a failed write as the first one does, if that is open."""
        return os.dup(self._file) if self._file is not None else await run_disk(self._disk.open, self.path)

    def close(self) -> None:
        """Let the descriptor go; the caller sees to it that nobody uses it."""
        if (file := self.give_away()) is not None:
            os.close(file)

    def give_away(self) -> int | None:
        """The descriptor, which is the caller's from now on; None if it is not open."""
        file, self._file = self._file, None
        return file

    def write(self, file: int, view: memoryview, offset: int) -> tuple[int, OSError | None]:
        """How much was written at `offset`, and what went wrong before all was; for a thread."""
        written = 0
        try:
            while written < len(view):
                written += self._disk.write(file, view[written:], offset + written)
        except OSError as error:
            return written, error
        return written, None

    def cut_back(self, offset: int) -> None:
        """The bytes from `offset` on count no more; the next `open` takes them out of the file."""
        self.generation += 1
        self.offset, self.is_ragged = offset, True

    def check_alive(self) -> None:
        """Raise why they are gone, if they are."""
        if self.gone is not None:
            raise self.gone

    def end(self, reason: ImgfsError) -> None:
        """None of them counts for anybody any more."""
        self.gone = reason
        self.generation += 1
        self.close()


class PrefixDigest:
    """`running` is of a prefix of the bytes that count, and of all of them after `catch_up`."""

    def __init__(self, data: IngestBytes, algorithm: str) -> None:
        self.running: RunningDigest = RunningDigest.start(algorithm)
        self._data = data
        self._hashing = trio.Lock()

    @property
    def is_behind(self) -> bool:
        """Whether there are bytes that are not in it."""
        return self.running.position < self._data.offset

    def begin_again(self, algorithm: str) -> None:
        """Start at byte 0."""
        self.running = RunningDigest.start(algorithm)

    def replace(self, before: RunningDigest, longer: RunningDigest) -> None:
        """Take what somebody made of `before`, unless it is another one by now."""
        if self.running is before:
            self.running = longer

    def offer(self, running: RunningDigest) -> None:
        """Take what somebody else made of the same bytes, if it is longer."""
        if running.position > self.running.position:
            self.running = running

    async def catch_up(self) -> None:
        """Hash what is not hashed yet, from the file, at disk speed. Raises OSError."""
        async with self._hashing:
            if self._data.gone is not None or not self.is_behind:
                return
            file = os.open(self._data.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                await self._read_on(file)
            finally:
                os.close(file)

    async def _read_on(self, file: int) -> None:
        data = self._data
        while data.gone is None and self.is_behind:
            generation, running = data.generation, self.running
            try:
                longer = await run_cpu(running.read_on, file, data.offset)
            except OSError:
                if generation == data.generation:
                    raise
                continue
            if generation == data.generation:
                self.replace(running, longer)


_log = logging.getLogger("imgfs.content.ingest")


class Syncing:
    """Syncs one ingest, once at a time. The first `meta.durable` bytes were synced before that was recorded."""

    def __init__(self, disk: Disk, data: IngestBytes, record: IngestRecord, prefix: PrefixDigest) -> None:
        self.failed: ImgfsError | None = None
        """The failed sync that nobody has continued after yet."""
        self._disk = disk
        self._bytes = data
        self._record = record
        self._prefix = prefix
        self._syncing = trio.Lock()
        self._synced: tuple[int, int, int] | None = None
        """The shape of the file when its bytes were synced last."""

    @property
    def is_durable(self) -> bool:
        """Whether all bytes so far are on disk, and nothing else is in the file."""
        return not self._bytes.is_ragged and self._synced == self._bytes.shape

    async def record(self) -> None:
        """Make the bytes so far durable, and record that they are. Raises NoSpace, StorageFailed, and why it is gone.

        Where the sync failed, the bytes since the last good one are given up, and `failed` says so.
        """
        generation, offset = self._bytes.generation, self._bytes.offset
        if offset == self._record.meta.durable and self._record.is_durable:
            return
        async with self._syncing:
            if generation == self._bytes.generation and not self.is_durable:
                await self._sync(offset)
        async with self._record.lock:
            if generation == self._bytes.generation and self._bytes.gone is None:
                await self._record.write(msgspec.structs.replace(self._record.meta, durable=offset))

    async def _sync(self, offset: int) -> None:
        """The caller holds `_syncing`."""
        try:
            file = await self._bytes.open_another()
            try:
                await self._fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            self._bytes.check_alive()
            raise await self._give_up(error, offset) from None

    async def _fsync(self, file: int) -> None:
        shape = self._bytes.shape
        await run_disk(self._disk.fsync, file)
        self._synced = shape

    async def sync_behind(self, file: int) -> None:
        """Make the bytes durable by a descriptor that nobody writes with any more, for nobody who waits.

        A failure is in `failed`, and only there. Until it is known what that costs, no other sync begins: a commit that
        waits for this one has to hear of it.
        """
        generation = self._bytes.generation
        async with self._syncing:
            if generation != self._bytes.generation or self.is_durable:
                return
            try:
                await self._fsync(file)
            except OSError as error:
                # The disk tells of a failure once: it may be that of bytes which took the place of these meanwhile.
                if self._bytes.gone is None:
                    await self._give_up(error, self._bytes.offset)

    async def _give_up(self, error: OSError, offset: int) -> ImgfsError:
        """As `fall_back`, when the record that is being written is: it must not vouch for more than is left then."""
        with trio.CancelScope(shield=True):
            await self._record.lock.acquire()
        try:
            return self.fall_back(error, offset)
        finally:
            self._record.lock.release()

    def fall_back(self, error: OSError, offset: int) -> ImgfsError:
        """A sync of the first `offset` bytes failed: give up what was not recorded; returns what to raise.

        The caller holds the record's lock.
        """
        meta = self._record.meta
        failure = from_os(error, meta.subject)
        self.failed = type(failure)(
            f"{failure.message}; bytes {meta.durable} to {offset} are lost, continue at byte {meta.durable}"
        )
        self._bytes.cut_back(meta.durable)
        if self._prefix.running.position > meta.durable:
            self._prefix.begin_again(meta.algorithm)
        _log.warning("fsync failed, ingest falls back", extra={"ref": meta.ref, "offset": meta.durable})
        return self.failed

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """While this is held, nobody syncs or records."""
        async with self._syncing, self._record.lock:
            yield
