"""The daemon's loop: expired leases go, uses are written down, and room is made where a limit is passed.

A limit is looked after each second while bytes come in, for a disk may be full in a minute. Without pressure nothing is
collected: garbage is a cache that costs nothing while there is room.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import ImgfsError, StorageFailed, from_os
from imgfs.gc.collector import Collector
from imgfs.gc.evictor import Evictor
from imgfs.gc.report import Report
from imgfs.gc.rooms import Rooms
from imgfs.gc.unfinished import taken
from imgfs.metrics.family import Family, gauge

_log = logging.getLogger("imgfs.gc")

_SLACK = 20
"""A limit that is passed is made room for by its twentieth more, so that the next byte does not pass it again."""


LOOK_SECONDS = 1.0
"""How often a limit is looked after while somebody writes content."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`quota` bytes of blobs and layers at most, `free` bytes and `free_percent` of the disk at least; 0: no limit."""

    quota: int = 0
    free: int = 0
    free_percent: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.quota or self.free or self.free_percent)

    def need(self, used: int, available: int, size: int) -> int:
        """How many bytes must go, when `used` are taken here and `available` of the disk's `size` are free."""
        lowest = self.lowest(size)
        over = used - self.quota if self.quota else 0
        short = lowest - available
        return max(over + self.quota // _SLACK if over > 0 else 0, short + lowest // _SLACK if short > 0 else 0)

    def lowest(self, size: int) -> int:
        """How many bytes of a disk of `size` are to be kept free."""
        return max(self.free, math.ceil(size * self.free_percent / 100))


class Room:
    """How much room there is, and making more."""

    def __init__(self, state: Path, rooms: Rooms) -> None:
        self._state = state
        self._rooms = rooms
        running = trio.Lock()
        self.collector = Collector(rooms, running)
        self.evictor = Evictor(rooms, running)

    async def used(self) -> int:
        """Bytes on disk of all blobs, layers and unfinished writes. Raises StorageFailed.

        Copies of layers that come right now count nothing: they go with their end.
        """
        return sum((await self.usage()).values())

    async def usage(self) -> dict[str, int]:
        """The same by kind: `blobs`, without those that are a layer's tar too, `layers` and `unfinished`."""
        tars = [layer.tar for layer in self._rooms.layers]
        alone = [info.allocated for info in self._rooms.content if info.digest not in self._rooms.layers]
        parts = await taken(self._rooms.ingests)
        return {"blobs": sum(alone), "layers": await run_disk(_allocated, tars), "unfinished": parts}

    async def families(self) -> list[Family]:
        """What metrics tell of the disk and of garbage; what the disk does not tell now is left out."""
        try:
            usage = await self.usage()
        except StorageFailed:
            return self._rooms.totals.families()
        bytes_of = {(kind,): size for kind, size in usage.items()}
        return [gauge("imgfs_store_bytes", "Bytes on disk.", ("kind",), bytes_of), *self._rooms.totals.families()]

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
                await self._rooms.leases.expire()
                if limits:
                    await self.make(limits)
                    is_helped = not await self.need(limits)
                await self._rooms.clock.save()
            except ImgfsError as error:
                _log.warning("no room was made", extra={"reason": error.message})

    async def _wait_pressed(self, limits: Limits, *, is_helped: bool) -> None:
        """Until a limit is passed while somebody writes; for ever where the last attempt to make room was in vain."""
        while True:
            await trio.sleep(LOOK_SECONDS if limits and is_helped else math.inf)
            with suppress(ImgfsError):
                if self._rooms.ingests.is_filling and await self.need(limits):
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
