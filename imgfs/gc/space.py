"""How much space content takes, which limits it has, and making space.

SpaceKeeper is the daemon's background loop: it enforces the limits, expires leases and writes down times of use. While
content is written it checks the limits each second, because a fast download fills a disk in a minute. Without a passed
limit it collects nothing: garbage is a cache that costs nothing while there is space.
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
from imgfs.errors import ImgfsError, StateError, StorageFailed, from_os
from imgfs.gc.candidates import unfinished_bytes
from imgfs.gc.collector import Collector
from imgfs.gc.evictor import Evictor
from imgfs.gc.report import GarbageReport
from imgfs.gc.stores import GarbageStores
from imgfs.metrics.family import Family, gauge

_log = logging.getLogger("imgfs.gc")

CHECK_SECONDS = 1.0
"""Seconds between two checks of the limits while content is written."""
_SLACK = 20
"""A run that enforces a limit frees a twentieth of the limit more, so that the next byte does not pass it again."""


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """At most `quota` bytes of blobs and layers; at least `free` bytes and `free_percent` of the disk free. 0: none."""

    quota: int = 0
    free: int = 0
    free_percent: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.quota or self.free or self.free_percent)

    def need(self, used: int, available: int, size: int) -> int:
        """Bytes to free, if content takes `used` and `available` bytes of the disk's `size` are free."""
        lowest = self.lowest(size)
        over = used - self.quota if self.quota else 0
        short = lowest - available
        return max(over + self.quota // _SLACK if over > 0 else 0, short + lowest // _SLACK if short > 0 else 0)

    def lowest(self, size: int) -> int:
        """Bytes to keep free on a disk of `size` bytes."""
        return max(self.free, math.ceil(size * self.free_percent / 100))


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What `df` shows, in blocks of `block` bytes, as statvfs(3): `free` blocks, of which imgfs may use `available`.

    `files` and `files_free` are the disk's inodes; no limit changes them.
    """

    block: int
    total: int
    free: int
    available: int
    files: int
    files_free: int


def space_of(disk: os.statvfs_result, limits: SpaceLimits, used: int) -> DiskSpace:
    """The disk under `limits`, when content takes `used` bytes.

    Without a quota these are the disk's own numbers. With a quota the total is the quota (or the disk, if it is
    smaller), and used is what counts for the quota, as for a directory with a project quota. Space that the limits keep
    free is free and not available, like the blocks that are reserved for root.
    """
    total, free = disk.f_blocks, disk.f_bfree
    if limits.quota:
        total = min(total, limits.quota // disk.f_frsize)
        free = max(0, total - -(-used // disk.f_frsize))
    lowest = -(-limits.lowest(disk.f_blocks * disk.f_frsize) // disk.f_frsize)
    available = max(0, min(free, disk.f_bavail - lowest))
    return DiskSpace(disk.f_frsize, total, free, available, disk.f_files, disk.f_ffree)


class SpaceKeeper:
    """Measures the space that content takes, and makes space."""

    def __init__(self, state: Path, stores: GarbageStores) -> None:
        self._state = state
        self._stores = stores
        running = trio.Lock()
        self.collector = Collector(stores, running)
        self.evictor = Evictor(stores, running)

    async def used(self) -> int:
        """Bytes on disk of all blobs, layers and unfinished writes. Raises StorageFailed.

        A copy of a layer that is being made does not count, because it is removed when it is complete.
        """
        return sum((await self.usage()).values())

    async def usage(self) -> dict[str, int]:
        """Used bytes by kind: `blobs` (without those that share a file with a layer), `layers` and `unfinished`."""
        tars = [layer.tar for layer in self._stores.layers]
        alone = [info.allocated for info in self._stores.content if info.digest not in self._stores.layers]
        parts = await unfinished_bytes(self._stores.ingests)
        return {"blobs": sum(alone), "layers": await run_disk(_allocated, tars), "unfinished": parts}

    async def families(self) -> list[Family]:
        """The metrics of space and garbage collection; those of space are missing while the disk cannot be read."""
        try:
            usage = await self.usage()
        except StateError:
            return self._stores.totals.families()
        bytes_of = {(kind,): size for kind, size in usage.items()}
        return [gauge("imgfs_store_bytes", "Bytes on disk.", ("kind",), bytes_of), *self._stores.totals.families()]

    async def disk(self) -> os.statvfs_result:
        """The numbers of the state directory's disk. Raises StorageFailed."""
        try:
            return await run_disk(os.statvfs, self._state)
        except OSError as error:
            raise from_os(error, str(self._state)) from None

    async def need(self, limits: SpaceLimits) -> int:
        """Bytes to free until the limits hold. Raises StorageFailed."""
        disk = await self.disk()
        used = await self.used() if limits.quota else 0
        return limits.need(used, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)

    async def enforce(self, limits: SpaceLimits) -> list[GarbageReport]:
        """Free space if a limit is passed. Raises StorageFailed."""
        need = await self.need(limits)
        return await self.free(need) if need else []

    async def free(self, need: int) -> list[GarbageReport]:
        """Free `need` bytes: remove garbage first, then what can be fetched again. Raises StorageFailed."""
        reports = [await self.collector.collect()]
        if need > reports[0].bytes:
            reports.append(await self.evictor.evict(need - reports[0].bytes))
        missing = need - sum(report.bytes for report in reports)
        if missing > 0:
            _log.warning("not enough space can be freed", extra={"missing": missing})
        return reports

    async def watch(self, limits: SpaceLimits, interval: float) -> None:
        """Enforce the limits for ever: every `interval` seconds, and sooner if written content passes a limit.

        A run that fails, or frees too little, is logged and repeated after `interval`.
        """
        is_helped = True
        while True:
            with trio.move_on_after(interval):
                await self._wait_passed(limits, is_helped=is_helped)
            is_helped = False
            try:
                await self._stores.leases.expire()
                if limits:
                    await self.enforce(limits)
                    is_helped = not await self.need(limits)
                await self._stores.clock.save()
            except ImgfsError as error:
                _log.warning("space could not be freed", extra={"reason": error.message})

    async def _wait_passed(self, limits: SpaceLimits, *, is_helped: bool) -> None:
        """Wait until writers pass a limit; for ever if the last run could not make the limits hold."""
        while True:
            await trio.sleep(CHECK_SECONDS if limits and is_helped else math.inf)
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
