"""How much room there is, and making more: the daemon's loop, in which leases expire and uses are written down too.

A limit is looked after each second while bytes come in, for a disk may be full in a minute. Without pressure nothing is
collected: garbage is a cache that costs nothing while there is room.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import ImgfsError, StateError, StorageFailed, from_os
from imgfs.gc.collector import Collector
from imgfs.gc.evictor import Evictor
from imgfs.gc.limits import Limits
from imgfs.gc.report import Report
from imgfs.gc.stores import Stores
from imgfs.gc.unfinished import taken
from imgfs.metrics.family import Family, gauge

_log = logging.getLogger("imgfs.gc")

LOOK_SECONDS = 1.0
"""How often a limit is looked after while somebody writes content."""


class Room:
    """How much room there is, and making more."""

    def __init__(self, state: Path, stores: Stores) -> None:
        self._state = state
        self._stores = stores
        running = trio.Lock()
        self.collector = Collector(stores, running)
        self.evictor = Evictor(stores, running)

    async def used(self) -> int:
        """Bytes on disk of all blobs, layers and unfinished writes. Raises StorageFailed.

        Copies of layers that come right now count nothing: they go with their end.
        """
        return sum((await self.usage()).values())

    async def usage(self) -> dict[str, int]:
        """The same by kind: `blobs`, without those that are a layer's tar too, `layers` and `unfinished`."""
        tars = [layer.tar for layer in self._stores.layers]
        alone = [info.allocated for info in self._stores.content if info.digest not in self._stores.layers]
        parts = await taken(self._stores.ingests)
        return {"blobs": sum(alone), "layers": await run_disk(_allocated, tars), "unfinished": parts}

    async def families(self) -> list[Family]:
        """What metrics tell of the disk and of garbage; what the disk does not tell now is left out."""
        try:
            usage = await self.usage()
        except StateError:
            return self._stores.totals.families()
        bytes_of = {(kind,): size for kind, size in usage.items()}
        return [gauge("imgfs_store_bytes", "Bytes on disk.", ("kind",), bytes_of), *self._stores.totals.families()]

    async def disk(self) -> os.statvfs_result:
        """What the disk of the state directory says of itself. Raises StorageFailed."""
        try:
            return await run_disk(os.statvfs, self._state)
        except OSError as error:
            raise from_os(error, str(self._state)) from None

    async def need(self, limits: Limits) -> int:
        """How many bytes must go for the limits to hold. Raises StorageFailed."""
        disk = await self.disk()
        used = await self.used() if limits.quota else 0
        return limits.need(used, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)

    async def make(self, limits: Limits) -> list[Report]:
        """Make room if a limit is passed. Raises StorageFailed."""
        need = await self.need(limits)
        return await self.free(need) if need else []

    async def free(self, need: int) -> list[Report]:
        """Make room for `need` bytes: garbage goes first, then what can be fetched again. Raises StorageFailed."""
        reports = [await self.collector.collect()]
        if need > reports[0].bytes:
            reports.append(await self.evictor.evict(need - reports[0].bytes))
        missing = need - sum(report.bytes for report in reports)
        if missing > 0:
            _log.warning("no more room can be made", extra={"missing": missing})
        return reports

    async def watch(self, limits: Limits, interval: float) -> None:
        """For ever, every `interval` seconds, and sooner where a limit is passed by what comes in.

        What fails, or helps nothing, is logged and tried again after `interval`.
        """
        is_helped = True
        while True:
            with trio.move_on_after(interval):
                await self._wait_pressed(limits, is_helped=is_helped)
            is_helped = False
            try:
                await self._stores.leases.expire()
                if limits:
                    await self.make(limits)
                    is_helped = not await self.need(limits)
                await self._stores.clock.save()
            except ImgfsError as error:
                _log.warning("no room was made", extra={"reason": error.message})

    async def _wait_pressed(self, limits: Limits, *, is_helped: bool) -> None:
        """Until a limit is passed while somebody writes; for ever where the last attempt to make room was in vain."""
        while True:
            await trio.sleep(LOOK_SECONDS if limits and is_helped else math.inf)
            with suppress(ImgfsError):
                if self._stores.ingests.is_filling and await self.need(limits):
                    return


def _allocated(tars: list[Path]) -> int:
    total = 0
    for tar in tars:
        try:
            total += tar.stat().st_blocks * 512
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageFailed(f"{tar}: {error.strerror}; check the disk of the state directory") from None
    return total
