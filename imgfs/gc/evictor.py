"""Eviction: frees space by removing what can be fetched again although a root reaches it, least recently used first.

Only bulk data is evicted: uncompressed tars, and blobs that are no manifest, index or config, so that every name, file
name and size of an image stays readable. The evictor keeps what leases, pins, root labels or open mounts hold, and what
has no known source. The order: first blobs whose tar is stored, because their data is stored twice; then interrupted
downloads, which no reader can use; then tars whose blob is stored (even if that blob has no source), because they are
unpacked again without a registry; then everything else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from imgfs.content.store import BlobInfo, ContentStore
from imgfs.gc.candidates import Candidates, candidates
from imgfs.gc.cycle import Cycle
from imgfs.gc.report import GarbageItem, GarbageReport
from imgfs.gc.stores import GarbageStores
from imgfs.oci.digest import Digest

_log = logging.getLogger("imgfs.gc")

_TWICE = "frees space: its layer is stored unpacked"
_PART = "frees space: an interrupted download"
_AGAIN = "frees space: its blob is stored, and is unpacked again when it is read"
_UNUSED = "frees space: least recently used, and can be fetched again"


@dataclass(frozen=True, slots=True)
class _Evictable:
    used: int
    item: GarbageItem
    may_go: Callable[[], bool]
    remove: Callable[[], Awaitable[object]]

    @property
    def order(self) -> tuple[int, int, str]:
        return (_TWICE, _PART, _AGAIN, _UNUSED).index(self.item.why), self.used, self.item.id


class Evictor:
    """Frees space, one run at a time. Each run holds `running`, which collections hold too."""

    def __init__(self, stores: GarbageStores, running: trio.Lock) -> None:
        self._stores = stores
        self._running = running

    async def evict(self, need: int, *, dry_run: bool = False) -> GarbageReport:
        """Remove things until `need` more bytes are free, or nothing more may go; the report has the number.

        Readers of a removed thing read on, and its bytes are free when the last reader closes it. Raises StorageFailed.
        """
        async with self._running:
            report = GarbageReport(mode="evict", dry_run=dry_run)
            with self._stores.pins.noting() as pinned:
                cycle = Cycle(self._stores, report, pinned, holds_only=True)
                found = await candidates(self._stores)
                await cycle.mark()
                choices = [*await self._layers(cycle, found), *await self._blobs(cycle, found)]
                choices += await self._parts(cycle, found)
                await self._remove(cycle, sorted(choices, key=lambda one: one.order), need)
            facts = {"removed": len(report.removed), "bytes": report.bytes, "need": need, "dry_run": dry_run}
            _log.info("evicted", extra=facts)
            self._stores.totals.add(report)
            return report

    async def _remove(self, cycle: Cycle, choices: list[_Evictable], need: int) -> None:
        freed = 0
        gone: set[Digest] = set()
        for choice in choices:
            if freed >= need:
                break
            if await cycle.remove(choice.item, choice.may_go, choice.remove):
                freed += choice.item.bytes
                if choice.item.kind != "ingest":
                    gone.add(Digest(choice.item.id))
        if not cycle.report.dry_run:
            self._stores.views.drop(gone)
            await self._stores.clock.forget(gone)

    async def _layers(self, cycle: Cycle, found: Candidates) -> list[_Evictable]:
        fetchable = await self._stores.catalog.fetchable_layers()
        blobs = await self._stores.catalog.unpacked([info.digest for info in found.blobs])
        again = {diff_id for blob, diff_id in blobs.items() if blob != diff_id}  # else blob and tar are the same file
        marked, store = cycle.marker.layers, self._stores.layers
        return [
            _Evictable(
                self._used(one.layer.diff_id, one.stored),
                GarbageItem("layer", one.layer.diff_id, one.bytes, _AGAIN if one.layer.diff_id in again else _UNUSED),
                lambda layer=one.layer: layer.diff_id not in marked and store.is_served(layer),
                partial(store.evict, one.layer.diff_id),
            )
            for one in found.layers
            if one.layer.diff_id in fetchable or one.layer.diff_id in again
        ]

    async def _blobs(self, cycle: Cycle, found: Candidates) -> list[_Evictable]:
        fetchable = await self._stores.catalog.fetchable_data()
        blobs = [info for info in found.blobs if info.digest in fetchable]
        unpacked = await self._stores.catalog.unpacked([info.digest for info in blobs])
        choices: list[_Evictable] = []
        for info in blobs:
            why = _TWICE if unpacked.get(info.digest) in found.unpacked else _UNUSED
            item = GarbageItem("blob", info.digest, found.bytes_of(info), why)
            may_go = partial(_may_go, info, cycle.marker.blobs, self._stores.content)
            remove = partial(self._stores.content.remove, info.digest)
            choices.append(_Evictable(self._used(info.digest, info.committed), item, may_go, remove))
        return choices

    async def _parts(self, cycle: Cycle, found: Candidates) -> list[_Evictable]:
        fetchable = await self._stores.catalog.fetchable(one.digest for one in found.parts)
        marker, ingests = cycle.marker, self._stores.ingests
        return [
            _Evictable(
                one.status.updated,
                GarbageItem("ingest", one.status.ref, one.bytes, _PART),
                lambda one=one: one.digest not in marker.blobs and one.status.ref not in marker.ingests,
                partial(ingests.reclaim, one.status),
            )
            for one in found.parts
            if one.digest in fetchable
        ]

    def _used(self, digest: Digest, stored: int) -> int:
        return self._stores.clock.last_used(digest) or stored


def _may_go(info: BlobInfo, held: set[Digest], stored: ContentStore) -> bool:
    return info.digest not in held and stored.info(info.digest) is info
