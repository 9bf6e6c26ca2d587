"""The bytes of an unfinished write: the file `data`, the digest of its bytes, and their durability.

A failed sync is final, because the kernel reports lost bytes only once: all bytes after the last recorded sync are
given up.
"""

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
    """A file whose first `offset` bytes are valid; the file has at least that many.

    Every operation that removes bytes changes `generation`. A sync or a hash that began before such a change is
    ignored. Methods raise OSError.
    """

    def __init__(self, disk: Disk, path: Path, offset: int) -> None:
        self.path = path
        self.offset: int = offset
        self.generation = 0
        self.is_ragged = True
        """Whether the file may have bytes beyond `offset`. Unknown before the first open, so it starts as True."""
        self.gone: ImgfsError | None = None
        """Why the ingest was ended; None while it is alive."""
        self._disk = disk
        self._cuts = 0
        self._file: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is open."""
        return self._file is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """A value that changes whenever the file changes."""
        return self.generation, self._cuts, self.offset

    async def open(self) -> int:
        """Return the descriptor. Truncates the file to `offset` first if it may be longer."""
        if self._file is None:
            self._file = await run_disk(self._disk.open, self.path)
            self.is_ragged = os.fstat(self._file).st_size != self.offset
        if self.is_ragged:
            await run_disk(self._disk.truncate, self._file, self.offset)
            self.is_ragged = False
            self._cuts += 1
        return self._file

    async def open_another(self) -> int:
        """Return a descriptor that the caller owns.

        It is a duplicate of the open descriptor if there is one, so it reports failed writes of that one too.
        """
        return os.dup(self._file) if self._file is not None else await run_disk(self._disk.open, self.path)

    def close(self) -> None:
        """Close the descriptor. The caller ensures that no thread uses it."""
        if (file := self.give_away()) is not None:
            os.close(file)

    def give_away(self) -> int | None:
        """Return the descriptor, which the caller owns from now on; None if it is not open."""
        file, self._file = self._file, None
        return file

    def write(self, file: int, view: memoryview, offset: int) -> tuple[int, OSError | None]:
        """Write at `offset`.

        Returns the number of bytes written, and the error if that is not all. Call it in a thread.
        """
        written = 0
        try:
            while written < len(view):
                written += self._disk.write(file, view[written:], offset + written)
        except OSError as error:
            return written, error
        return written, None

    def cut_back(self, offset: int) -> None:
        """Make the bytes from `offset` on invalid. The next `open` removes them from the file."""
        self.generation += 1
        self.offset, self.is_ragged = offset, True

    def check_alive(self) -> None:
        """Raise the reason if the ingest was ended."""
        if self.gone is not None:
            raise self.gone

    def end(self, reason: ImgfsError) -> None:
        """Make all bytes invalid for all users."""
        self.gone = reason
        self.generation += 1
        self.close()


class PrefixDigest:
    """The digest of a prefix of the valid bytes, and of all of them after `catch_up`.

    It grows with each write. After a resume it starts at 0 and is hashed from the file.
    """

    def __init__(self, data: IngestBytes, algorithm: str) -> None:
        self.running: RunningDigest = RunningDigest.start(algorithm)
        self._data = data
        self._hashing = trio.Lock()

    @property
    def is_behind(self) -> bool:
        """Whether there are bytes that are not hashed yet."""
        return self.running.position < self._data.offset

    def reset(self, algorithm: str) -> None:
        """Start again at byte 0."""
        self.running = RunningDigest.start(algorithm)

    def replace(self, before: RunningDigest, longer: RunningDigest) -> None:
        """Replace `before` by `longer`, unless `running` is a different object by now."""
        if self.running is before:
            self.running = longer

    def offer(self, running: RunningDigest) -> None:
        """Use the digest of the same bytes that another task computed, if it is longer."""
        if running.position > self.running.position:
            self.running = running

    async def catch_up(self) -> None:
        """Hash all bytes that are not hashed yet, from the file. Raises OSError."""
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
    """Syncs one ingest, one sync at a time. The first `meta.durable` bytes are synced before the record says so."""

    def __init__(self, disk: Disk, data: IngestBytes, record: IngestRecord, prefix: PrefixDigest) -> None:
        self.failed: ImgfsError | None = None
        """The failed sync, until a writer continues after it."""
        self._disk = disk
        self._bytes = data
        self._record = record
        self._prefix = prefix
        self._syncing = trio.Lock()
        self._synced: tuple[int, int, int] | None = None
        """The shape of the file at the last successful sync."""

    @property
    def is_durable(self) -> bool:
        """Whether all bytes so far are on disk, and the file has no others."""
        return not self._bytes.is_ragged and self._synced == self._bytes.shape

    async def record(self) -> None:
        """Make the bytes so far durable and record that.

        Raises NoSpace, StorageFailed, and the reason if the ingest was ended.

        After a failed sync, the bytes since the last recorded one are given up, and `failed` has the error.
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
        """Sync the first `offset` bytes. The caller holds `_syncing`."""
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

    async def sync_in_background(self, file: int) -> None:
        """Make the bytes durable through the descriptor of a writer that has closed. No caller waits for the result.

        An error is only kept in `failed`. Other syncs wait until the error is handled: a commit that waits for this
        sync must receive its error.
        """
        generation = self._bytes.generation
        async with self._syncing:
            if generation != self._bytes.generation or self.is_durable:
                return
            try:
                await self._fsync(file)
            except OSError as error:
                # The kernel reports a failure once. If other bytes replaced these meanwhile, it may be about those.
                if self._bytes.gone is None:
                    await self._give_up(error, self._bytes.offset)

    async def _give_up(self, error: OSError, offset: int) -> ImgfsError:
        """Call `fall_back` with the record locked: a record that is being written must not claim bytes that are given
        up.
        """
        with trio.CancelScope(shield=True):
            await self._record.lock.acquire()
        try:
            return self.fall_back(error, offset)
        finally:
            self._record.lock.release()

    def fall_back(self, error: OSError, offset: int) -> ImgfsError:
        """Handle a failed sync of the first `offset` bytes: give up all that was not recorded; return the error to
        raise.

        The caller holds the record's lock.
        """
        meta = self._record.meta
        failure = from_os(error, meta.subject)
        self.failed = type(failure)(
            f"{failure.message}; bytes {meta.durable} to {offset} are lost, continue at byte {meta.durable}"
        )
        self._bytes.cut_back(meta.durable)
        if self._prefix.running.position > meta.durable:
            self._prefix.reset(meta.algorithm)
        _log.warning("fsync failed, ingest falls back", extra={"ref": meta.ref, "offset": meta.durable})
        return self.failed

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Prevent syncs and changes of the record in this context."""
        async with self._syncing, self._record.lock:
            yield
