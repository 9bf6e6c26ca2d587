"""Collecting: what no root reaches goes, unless it cannot be had again.

What has no known source was brought by a user (an ingest) or its source was forgotten: it stays with all that it refers
to, and is only told of, until somebody asks for everything. A state directory without any root but with content has
lost its database, or its names on purpose; nobody can tell, so that is refused until somebody asks for everything too.
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
from imgfs.gc.candidates import Candidates, candidates
from imgfs.gc.cycle import Cycle
from imgfs.gc.marker import Marker
from imgfs.gc.report import Item, Report
from imgfs.gc.stores import Stores
from imgfs.gc.unfinished import Unfinished, rests, shown
from imgfs.layers.layer import Layer
from imgfs.oci.digest import Digest

_log = logging.getLogger("imgfs.gc")

_GARBAGE = "nothing refers to it"
_HERE = "what it would be is here already"
_OUTLIVED = "it was kept for long enough how it ended"
_ALONE = "nothing refers to it, but it cannot be fetched again"
_NO_ROOTS = (
    "refused: there is content but no name, lease, snapshot or root label, so all of it would go; if the database was "
    "lost, register the images again; else ask for everything (--all)"
)


class Collector:
    """Takes garbage away, one cycle at a time; `running` is held meanwhile, by evictions too."""

    def __init__(self, stores: Stores, running: trio.Lock) -> None:
        self._stores = stores
        self._running = running

    async def collect(self, *, everything: bool = False, dry_run: bool = False) -> Report:
        """Mark, then sweep. With `everything`, also what cannot be fetched again. Readers and pulls go on meanwhile.

        A crash or a cancellation in the sweep leaves garbage that the next cycle takes. A dry run changes nothing and
        reports the same. Raises StorageFailed where a document cannot be read, ReadOnly where nothing can be removed;
        then nothing was.
        """
        if not dry_run:
            await self._stores.content.check_writable("garbage collection")
        async with self._running:
            report = Report(mode="collect", dry_run=dry_run)
            with self._stores.pins.noting() as pinned:
                await self._run(Cycle(self._stores, report, pinned, holds_only=False), everything=everything)
            told = {"removed": len(report.removed), "bytes": report.bytes, "dry_run": dry_run}
            _log.info("collected garbage", extra=told)
            self._stores.totals.add(report)
            return report

    async def discard(self, digests: Iterable[Digest]) -> Report:
        """Take those of these blobs away that no root reaches, whether they can be had again or not.

        For who brought them for nothing: somebody else may have found them here meanwhile, and leased or named them, or
        was told that he need not bring them. Raises as `collect`.
        """
        await self._stores.content.check_writable("garbage collection")
        async with self._running:
            report = Report(mode="collect")
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
            await self._keep_what_is_alone(cycle, found)
        await self._sweep(cycle, found)

    async def _keep_what_is_alone(self, cycle: Cycle, found: Candidates) -> None:
        """Reach what cannot be had again: it is a root until somebody asks for everything."""
        marker, catalog = cycle.marker, self._stores.catalog
        blobs = [info for info in found.blobs if info.digest not in marker.blobs]
        layers = [one for one in found.layers if one.layer.diff_id not in marker.layers]
        fetchable = await catalog.fetchable(info.digest for info in blobs)
        unpacked = await catalog.fetchable_layers()
        for info in blobs:
            if info.digest not in fetchable:
                cycle.report.kept.append(Item("blob", info.digest, found.bytes_of(info), _ALONE))
                marker.image(info.digest, may_be_layer=True)
        alone = {one.layer.diff_id for one in layers} - unpacked
        for one in layers:
            if one.layer.diff_id in alone:
                cycle.report.kept.append(Item("layer", one.layer.diff_id, one.bytes, _ALONE))
                marker.layers.add(one.layer.diff_id)
        for chain in found.chains:
            if chain.diff_id in alone:
                marker.chain(chain.chain_id)
        await cycle.mark()

    async def _sweep(self, cycle: Cycle, found: Candidates) -> None:
        """What refers goes before what it refers to, so that a crash in between leaves nothing that leads nowhere."""
        await self._sweep_chains(cycle, found)
        for chain_id, size in found.metadata:
            item = Item("metadata", chain_id, size, _GARBAGE)
            is_garbage = partial(_is_unmarked, chain_id, cycle.marker.chains, cycle.marker.unbuilt)
            await cycle.remove(item, is_garbage, partial(self._stores.images.remove, chain_id))
        await self._sweep_unfinished(cycle, found)
        await self._sweep_abandoned(cycle, found)
        await self._sweep_layers(cycle, found)
        await self._sweep_blobs(cycle, [(info, found.bytes_of(info)) for info in found.blobs])
        await self._sweep_catalogue(cycle, found.known)
        await self._sweep_deleted(cycle)

    async def _sweep_chains(self, cycle: Cycle, found: Candidates) -> None:
        """All at once: a chain must not go before those that lie on it."""
        await cycle.mark()
        graph, marked = self._stores.graph, cycle.marker.chains
        old = {chain.chain_id: chain for chain in found.chains}
        for chain in graph:
            if old.get(chain.chain_id) is not chain:  # recorded meanwhile, on top of old ones maybe
                cycle.marker.chain(chain.chain_id)
        gone = [one.chain_id for one in found.chains if one.chain_id not in marked and graph.find(one.chain_id) is one]
        try:
            if gone and not cycle.report.dry_run:
                with trio.CancelScope(shield=True):
                    await graph.remove(gone)
            cycle.report.removed += [Item("snapshot", chain_id, 0, _GARBAGE) for chain_id in gone]
        except ImgfsError as error:  # the next start finds them again
            cycle.report.failed += [Item("snapshot", chain_id, 0, error.message) for chain_id in gone]
        await cycle.mark()

    async def _sweep_unfinished(self, cycle: Cycle, found: Candidates) -> None:
        """What a download left of something that nobody wants, or that came here another way."""
        digests = [one.digest for one in found.unfinished]
        fetchable = await self._stores.catalog.fetchable(digests)
        unpacked = await self._stores.catalog.unpacked(digests)
        for one in found.unfinished:
            if one.digest in fetchable:
                diff_id = unpacked.get(one.digest)
                is_here = one.digest in self._stores.content or (diff_id is not None and diff_id in self._stores.layers)
                item = Item("ingest", shown(one.status.ref), one.bytes, _HERE if is_here else _GARBAGE)
                is_garbage = partial(self._is_needless, one, cycle.marker, is_here=is_here)
                await cycle.remove(item, is_garbage, partial(self._stores.ingests.reclaim, one.status))

    async def _sweep_abandoned(self, cycle: Cycle, found: Candidates) -> None:
        gone = {item.id for item in cycle.report.removed if item.kind == "ingest"}
        for status, size in found.abandoned:
            if shown(status.ref) not in gone:
                item = Item("ingest", shown(status.ref), size, _why_abandoned(status))
                is_garbage = partial(self._is_abandoned, status, cycle.marker.ingests)
                await cycle.remove(item, is_garbage, partial(self._stores.ingests.reclaim, status))

    def _is_abandoned(self, old: IngestStatus, marked: set[str]) -> bool:
        ingests = self._stores.ingests
        return old.ref not in marked and old.ref in ingests and rests(ingests.status(old.ref), self._stores.patience)

    @staticmethod
    def _is_needless(one: Unfinished, marker: Marker, *, is_here: bool) -> bool:
        return one.status.ref not in marker.ingests and (is_here or one.digest not in marker.blobs)

    async def _sweep_layers(self, cycle: Cycle, found: Candidates) -> None:
        gone: set[Digest] = set()
        for one in found.layers:
            diff_id = one.layer.diff_id
            item = Item("layer", diff_id, one.bytes, _GARBAGE)
            is_garbage = partial(self._is_old_layer, one.layer, cycle.marker.layers)
            if await cycle.remove(item, is_garbage, partial(self._stores.layers.evict, diff_id)):
                gone.add(diff_id)
        await self._forget(cycle, gone)

    async def _sweep_blobs(self, cycle: Cycle, found: list[tuple[BlobInfo, int]]) -> None:
        """Blobs, and the bytes that go with each."""
        gone: set[Digest] = set()
        for info, size in found:
            item = Item("blob", info.digest, size, _GARBAGE)
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
            item = Item("container", id, size, _OUTLIVED)
            await cycle.remove(item, lambda: True, partial(containers.forget_deleted, id))

    async def _sweep_catalogue(self, cycle: Cycle, known: set[Digest]) -> None:
        """Forget where to find what nobody refers to and what is not here, neither as a blob nor unpacked."""
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
        report.removed += [Item("catalogue", digest, 0, _GARBAGE) for digest in gone]

    def _is_late(self, cycle: Cycle, gone: list[Digest]) -> bool:
        """Whether the mark is behind; called in a thread, while nothing can be added to the catalogue."""
        return cycle.roots.is_new() or cycle.marker.has_work() or any(one in self._stores.content for one in gone)


def _why_abandoned(status: IngestStatus) -> str:
    return f"nobody has gone on with it for {timedelta(seconds=int(status.idle_seconds))}"


def _is_unmarked(digest: Digest, *marks: set[Digest]) -> bool:
    return not any(digest in marked for marked in marks)
