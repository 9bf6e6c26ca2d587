"""Collection: removes what no root reaches and what can be fetched again.

A thing without a known source was written by a user, or the catalogue lost its source. The collector keeps it with
everything that it refers to, and reports it, unless the caller asks for everything. A state directory with content and
without any root has lost its database, or a user removed all names; these look the same, so the collector refuses to
remove anything unless the caller asks for everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from functools import partial

import trio

from imgfs.content.ingests.status import IngestStatus
from imgfs.content.store import BlobInfo
from imgfs.errors import ImgfsError
from imgfs.gc.candidates import Candidates, PartCandidate, candidates, is_abandoned, shown
from imgfs.gc.cycle import Cycle
from imgfs.gc.marker import Marker
from imgfs.gc.report import GarbageItem, GarbageReport
from imgfs.gc.stores import GarbageStores
from imgfs.layers.layer import Layer
from imgfs.oci.digest import Digest

_log = logging.getLogger("imgfs.gc")

_GARBAGE = "nothing refers to it"
_HERE = "its blob is stored already"
_EXPIRED = "how it ended was kept for long enough"
_ALONE = "nothing refers to it, but it cannot be fetched again"
_NO_ROOTS = (
    "refused: there is content but no name, lease, snapshot or root label, so all of it would go; if the database was "
    "lost, register the images again; else ask for everything (--all)"
)


class Collector:
    """Removes garbage, one cycle at a time. Each cycle holds `running`, which evictions hold too."""

    def __init__(self, stores: GarbageStores, running: trio.Lock) -> None:
        self._stores = stores
        self._running = running

    async def collect(self, *, everything: bool = False, dry_run: bool = False) -> GarbageReport:
        """Mark, then sweep. With `everything`, remove also what cannot be fetched again. Readers and pulls go on.

        A crash or a cancellation in the sweep leaves garbage for the next cycle. A dry run changes nothing and returns
        the same report. Raises StorageFailed if a document cannot be read, ReadOnly if nothing can be removed; then
        nothing was removed.
        """
        if not dry_run:
            await self._stores.content.check_writable("garbage collection")
        async with self._running:
            report = GarbageReport(mode="collect", dry_run=dry_run)
            with self._stores.pins.noting() as pinned:
                await self._run(Cycle(self._stores, report, pinned, holds_only=False), everything=everything)
            facts = {"removed": len(report.removed), "bytes": report.bytes, "dry_run": dry_run}
            _log.info("collected garbage", extra=facts)
            self._stores.totals.add(report)
            return report

    async def discard(self, digests: Iterable[Digest]) -> GarbageReport:
        """Remove those of these blobs that no root reaches, whether they can be fetched again or not.

        An import that failed calls this for the blobs that it stored. A blob stays if another caller has leased or
        named it meanwhile, or was answered that the blob is stored and need not be sent. Raises as `collect`.
        """
        await self._stores.content.check_writable("garbage collection")
        async with self._running:
            report = GarbageReport(mode="collect")
            with self._stores.pins.noting() as pinned:
                cycle = Cycle(self._stores, report, pinned, holds_only=False)
                content = self._stores.content
                found = [info for digest in digests if (info := content.info(digest))]
                await cycle.mark()
                cycle.marker.blobs.update(info.digest for info in found if content.is_relied_on(info.digest))
                await self._sweep_blobs(cycle, [(info, info.allocated) for info in found])
            return report

    async def _run(self, cycle: Cycle, *, everything: bool) -> None:
        found = await candidates(self._stores)
        await cycle.mark()
        if not everything and not cycle.roots.durable and (found.blobs or found.layers):
            cycle.report.refused = _NO_ROOTS
            return
        if not everything:
            await self._keep_unfetchable(cycle, found)
        await self._sweep(cycle, found)

    async def _keep_unfetchable(self, cycle: Cycle, found: Candidates) -> None:
        """Reach what cannot be fetched again: it counts as a root unless the caller asks for everything."""
        marker, catalog = cycle.marker, self._stores.catalog
        blobs = [info for info in found.blobs if info.digest not in marker.blobs]
        layers = [one for one in found.layers if one.layer.diff_id not in marker.layers]
        fetchable = await catalog.fetchable(info.digest for info in blobs)
        unpacked = await catalog.fetchable_layers()
        for info in blobs:
            if info.digest not in fetchable:
                cycle.report.kept.append(GarbageItem("blob", info.digest, found.bytes_of(info), _ALONE))
                marker.image(info.digest, may_be_layer=True)
        alone = {one.layer.diff_id for one in layers} - unpacked
        for one in layers:
            if one.layer.diff_id in alone:
                cycle.report.kept.append(GarbageItem("layer", one.layer.diff_id, one.bytes, _ALONE))
                marker.layers.add(one.layer.diff_id)
        for chain in found.chains:
            if chain.diff_id in alone:
                marker.chain(chain.chain_id)
        await cycle.mark()

    async def _sweep(self, cycle: Cycle, found: Candidates) -> None:
        """Remove what refers before what it refers to, so that a crash leaves no reference to a missing thing."""
        await self._sweep_chains(cycle, found)
        for chain_id, size in found.metadata:
            item = GarbageItem("metadata", chain_id, size, _GARBAGE)
            is_garbage = partial(_is_unmarked, chain_id, cycle.marker.chains, cycle.marker.unbuilt)
            await cycle.remove(item, is_garbage, partial(self._stores.images.remove, chain_id))
        await self._sweep_parts(cycle, found)
        await self._sweep_abandoned(cycle, found)
        await self._sweep_layers(cycle, found)
        await self._sweep_blobs(cycle, [(info, found.bytes_of(info)) for info in found.blobs])
        await self._sweep_catalogue(cycle, found.known)
        await self._sweep_deleted(cycle)

    async def _sweep_chains(self, cycle: Cycle, found: Candidates) -> None:
        """Remove all chains in one transaction: no chain may go before the chains on top of it."""
        await cycle.mark()
        graph, marked = self._stores.graph, cycle.marker.chains
        old = {chain.chain_id: chain for chain in found.chains}
        for chain in graph:
            if old.get(chain.chain_id) is not chain:  # recorded during this cycle, maybe on top of old chains
                cycle.marker.chain(chain.chain_id)
        gone = [one.chain_id for one in found.chains if one.chain_id not in marked and graph.find(one.chain_id) is one]
        try:
            if gone and not cycle.report.dry_run:
                with trio.CancelScope(shield=True):
                    await graph.remove(gone)
            cycle.report.removed += [GarbageItem("snapshot", chain_id, 0, _GARBAGE) for chain_id in gone]
        except ImgfsError as error:  # the next start finds the chains again
            cycle.report.failed += [GarbageItem("snapshot", chain_id, 0, error.message) for chain_id in gone]
        await cycle.mark()

    async def _sweep_parts(self, cycle: Cycle, found: Candidates) -> None:
        """Remove interrupted downloads of blobs that no root reaches, or that are stored by now."""
        digests = [one.digest for one in found.parts]
        fetchable = await self._stores.catalog.fetchable(digests)
        unpacked = await self._stores.catalog.unpacked(digests)
        for one in found.parts:
            if one.digest in fetchable:
                diff_id = unpacked.get(one.digest)
                is_here = one.digest in self._stores.content or (diff_id is not None and diff_id in self._stores.layers)
                item = GarbageItem("ingest", shown(one.status.ref), one.bytes, _HERE if is_here else _GARBAGE)
                is_garbage = partial(self._is_unwanted, one, cycle.marker, is_here=is_here)
                await cycle.remove(item, is_garbage, partial(self._stores.ingests.reclaim, one.status))

    async def _sweep_abandoned(self, cycle: Cycle, found: Candidates) -> None:
        gone = {item.id for item in cycle.report.removed if item.kind == "ingest"}
        for status, size in found.abandoned:
            if shown(status.ref) not in gone:
                item = GarbageItem("ingest", shown(status.ref), size, _why_abandoned(status))
                is_garbage = partial(self._is_old_ingest, status, cycle.marker.ingests)
                await cycle.remove(item, is_garbage, partial(self._stores.ingests.reclaim, status))

    def _is_old_ingest(self, old: IngestStatus, marked: set[str]) -> bool:
        ingests = self._stores.ingests
        return (
            old.ref not in marked
            and old.ref in ingests
            and is_abandoned(ingests.status(old.ref), self._stores.patience)
        )

    @staticmethod
    def _is_unwanted(one: PartCandidate, marker: Marker, *, is_here: bool) -> bool:
        return one.status.ref not in marker.ingests and (is_here or one.digest not in marker.blobs)

    async def _sweep_layers(self, cycle: Cycle, found: Candidates) -> None:
        gone: set[Digest] = set()
        for one in found.layers:
            diff_id = one.layer.diff_id
            item = GarbageItem("layer", diff_id, one.bytes, _GARBAGE)
            is_garbage = partial(self._is_old_layer, one.layer, cycle.marker.layers)
            if await cycle.remove(item, is_garbage, partial(self._stores.layers.evict, diff_id)):
                gone.add(diff_id)
        await self._forget(cycle, gone)

    async def _sweep_blobs(self, cycle: Cycle, found: list[tuple[BlobInfo, int]]) -> None:
        """Remove garbage among `found`: blobs and the bytes that each frees."""
        gone: set[Digest] = set()
        for info, size in found:
            item = GarbageItem("blob", info.digest, size, _GARBAGE)
            is_garbage = partial(self._is_old_blob, info, cycle.marker.blobs)
            if await cycle.remove(item, is_garbage, partial(self._stores.content.remove, info.digest)):
                gone.add(info.digest)
        await self._forget(cycle, gone)
        if gone and not cycle.report.dry_run:
            await self._stores.content.sweep_labels()

    def _is_old_blob(self, info: BlobInfo, marked: set[Digest]) -> bool:
        return info.digest not in marked and self._stores.content.info(info.digest) is info

    def _is_old_layer(self, layer: Layer, marked: set[Digest]) -> bool:
        return layer.diff_id not in marked and self._stores.layers.is_served(layer)

    async def _forget(self, cycle: Cycle, gone: set[Digest]) -> None:
        if gone and not cycle.report.dry_run:
            self._stores.views.drop(gone)
            await self._stores.clock.forget(gone)

    async def _sweep_deleted(self, cycle: Cycle) -> None:
        containers = self._stores.containers
        for id, size in await containers.outlived():
            item = GarbageItem("container", id, size, _EXPIRED)
            await cycle.remove(item, lambda: True, partial(containers.forget_deleted, id))

    async def _sweep_catalogue(self, cycle: Cycle, known: set[Digest]) -> None:
        """Forget the sources of digests that no root reaches and that are stored neither as blob nor as layer."""
        stores, marker, report = self._stores, cycle.marker, cycle.report
        would_go = {(item.kind, item.id) for item in report.removed} if report.dry_run else set[tuple[str, str]]()
        while True:
            await cycle.mark()
            absent = [one for one in known - marker.blobs if one not in stores.content or ("blob", one) in would_go]
            unpacked = await stores.catalog.unpacked(absent)
            here = {layer.diff_id for layer in stores.layers if ("layer", layer.diff_id) not in would_go}
            gone = sorted(one for one in absent if unpacked.get(one) not in here)
            if not gone or report.dry_run:
                break
            stores.forgotten(gone)
            if await stores.catalog.forget(gone, unless=partial(self._is_late, cycle, gone)):
                break
        report.removed += [GarbageItem("catalogue", digest, 0, _GARBAGE) for digest in gone]

    def _is_late(self, cycle: Cycle, gone: list[Digest]) -> bool:
        """Whether the mark is out of date; called in a thread while the catalogue cannot change."""
        return cycle.roots.is_new() or cycle.marker.has_work() or any(one in self._stores.content for one in gone)


def _why_abandoned(status: IngestStatus) -> str:
    return f"no writer has continued it for {timedelta(seconds=int(status.idle_seconds))}"


def _is_unmarked(digest: Digest, *marks: set[Digest]) -> bool:
    return not any(digest in marked for marked in marks)
