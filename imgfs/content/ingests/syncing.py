"""How an unfinished write becomes durable: its bytes, then the record that says so.

A failed sync is final, since the kernel tells of lost bytes once: what was not recorded before is given up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import trio

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.ingest_bytes import IngestBytes
from imgfs.content.ingests.prefix import PrefixDigest
from imgfs.content.ingests.record import Record
from imgfs.disk.calls import Disk
from imgfs.errors import ImgfsError, from_os

_log = logging.getLogger("imgfs.content.ingest")


class Syncing:
    """Syncs one ingest, once at a time. The first `meta.durable` bytes were synced before that was recorded."""

    def __init__(self, disk: Disk, data: IngestBytes, record: Record, prefix: PrefixDigest) -> None:
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
