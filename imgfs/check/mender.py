"""Repair while the tree is mounted: the daemon checks one thing, stops serving it, and fetches it again if it can.

The caller only names a place; the daemon does not trust the caller and checks the place itself. The rest of the tree
works meanwhile. An interrupted repair leaves the thing unchanged or set aside.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from imgfs.check.examiner import Examiner
from imgfs.check.finding import Finding
from imgfs.check.repair import Repair
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.disk.calls import HOST
from imgfs.errors import ImgfsError, Malformed, NotPermitted, VerificationFailed, from_os
from imgfs.images.catalog import Catalog
from imgfs.layers.reindex import reindex
from imgfs.layers.store import LayerStore
from imgfs.oci.digest import Digest
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.rebuild import Tables
from imgfs.rootfs.metadata import MetadataImages
from imgfs.rootfs.rootfs import Rootfs
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.views import LayerProvider
from imgfs.transfer.blobs import Blobs, known_descriptor
from imgfs.transfer.documents import Documents

T = TypeVar("T")

KEPT = 1000
"""The number of repairs that `done` remembers."""
_THREADS = trio.CapacityLimiter(2)
"""Hashing whole layers must not delay short disk operations."""
_log = logging.getLogger("imgfs.check")


class Mended(msgspec.Struct, frozen=True):
    """A fault and what was done. `again` says why the thing could not be fetched again; empty if it was."""

    path: str
    what: str
    done: str
    again: str = ""


@dataclass(frozen=True, slots=True)
class MendedStores:
    """The stores that the mender repairs."""

    content: ContentStore
    ingests: IngestStore
    layers: LayerStore
    metadata: MetadataImages
    rootfs: Rootfs
    graph: SnapshotGraph
    catalog: Catalog
    documents: Documents
    blobs: Blobs
    provider: LayerProvider
    keeper: Keeper


class Mender:
    """Repairs a mounted state directory, one thing at a time."""

    def __init__(self, state: Path, tables: Tables, stores: MendedStores) -> None:
        self._state = state
        self._tables = tables
        self._stores = stores
        self._turn = trio.Lock()
        self.done: deque[Mended] = deque(maxlen=KEPT)
        """The latest repairs, oldest first."""

    async def mend(self, place: str) -> Mended | None:
        """Check every byte of `place` and repair it; returns what was wrong, None if nothing was.

        Raises NotPermitted for a fault that needs the tree unmounted, Busy for a thing in use, NoSpace, StorageFailed.
        """
        async with self._turn:
            finding = await self._look(place)
            if finding is None or not finding.is_damage:
                return None
            done = await self._mend(finding)
        self.done.append(done)
        _log.warning("mended", extra=msgspec.structs.asdict(done))
        return done

    async def _look(self, place: str) -> Finding | None:
        def look() -> Finding | None:
            with Examiner(self._state, self._tables.kept, deep=True, moved=_until_cancelled) as examiner:
                return examiner.examine(place)

        try:
            return await _run(look)
        except OSError as error:
            raise from_os(error, place) from None

    async def _mend(self, finding: Finding) -> Mended:
        words = finding.path.split("/")
        match words[0], finding.mend:
            case _, "none":
                raise self._refused(finding)
            case "blobs", "aside":
                return await self._mend_blob(finding, Digest(f"{words[1]}:{words[-1]}"))
            case "layers", "aside":
                return await self._mend_layer(finding, Digest(f"{words[1]}:{words[2]}"))
            case "layers", "remove":
                return await self._renew_layer(finding, Digest(f"{words[1]}:{words[2]}"))
            case "layers", _:
                return await self._mend_index(finding, Digest(f"{words[1]}:{words[2]}"))
            case "views", _:
                return await self._mend_view(finding, Digest(f"sha256:{Path(words[1]).stem}"))
            case "ingest", _:
                return await self._mend_ingest(finding, words[1])
            case _, "copy":
                return await self._mend_copy(finding)
            case _:
                raise self._refused(finding)

    @staticmethod
    def _refused(finding: Finding) -> NotPermitted:
        return NotPermitted(f"{finding.path}: {finding.what}; unmount, `imgfs repair`, mount again")

    async def _mend_blob(self, finding: Finding, digest: Digest) -> Mended:
        stores = self._stores
        await _run(partial(stores.content.set_aside, digest))
        stores.documents.forget([digest])

        async def fetch() -> None:
            await stores.blobs.ensure(await known_descriptor(stores.catalog, digest))

        return await _again(finding, "set aside", fetch)

    async def _mend_layer(self, finding: Finding, diff_id: Digest) -> Mended:
        if diff_id in self._stores.layers:
            await self._stores.layers.set_aside(diff_id)
        else:
            await _run(partial(Repair(self._state, self._tables, _until_cancelled).mend, finding))
        return await self._serve_anew(finding, diff_id, "set aside")

    async def _renew_layer(self, finding: Finding, diff_id: Digest) -> Mended:
        """Serve a layer again whose tar was removed outside of the store."""
        await self._stores.layers.discard(diff_id)
        return await self._serve_anew(finding, diff_id, "removed")

    async def _serve_anew(self, finding: Finding, diff_id: Digest, done: str) -> Mended:
        """Let new readers get the new tar. The result names the mounts that still read the old one."""
        stores = self._stores
        if busy := await stores.rootfs.renew_layers({diff_id}):
            done = f"{done}; until they are unmounted, these read the damaged one: {', '.join(busy)}"

        async def fetch() -> None:
            if (known := stores.graph.layer(diff_id)) is not None:
                await stores.provider.provide([known])

        return await _again(finding, done, fetch)

    async def _mend_index(self, finding: Finding, diff_id: Digest) -> Mended:
        directory = (self._state / finding.path).parent
        try:
            await _run(partial(reindex, directory, diff_id, _until_cancelled))
        except (VerificationFailed, Malformed):
            return await self._mend_layer(finding, diff_id)
        except OSError as error:
            raise from_os(error, finding.path) from None
        return Mended(finding.path, finding.what, "made anew from the tar")

    async def _mend_view(self, finding: Finding, chain_id: Digest) -> Mended:
        await self._stores.metadata.remove(chain_id)
        busy = await self._stores.rootfs.renew({chain_id})
        until = f"; until they are unmounted, these show the damaged one: {', '.join(busy)}" if busy else ""
        return Mended(finding.path, finding.what, f"removed; the next walk makes it anew{until}")

    async def _mend_ingest(self, finding: Finding, name: str) -> Mended:
        if await self._stores.ingests.record_again(name):
            return Mended(finding.path, finding.what, "its record was written anew")
        done = await _run(partial(Repair(self._state, self._tables, _until_cancelled).mend, finding))
        return Mended(finding.path, finding.what, done)

    async def _mend_copy(self, finding: Finding) -> Mended:
        await self._stores.keeper.save()
        if (self._state / finding.path).exists() and await self._look(finding.path):
            await _run(partial(HOST.unlink, self._state / finding.path))
        return Mended(finding.path, finding.what, "written anew from the database")


async def _again(finding: Finding, done: str, fetch: Callable[[], Awaitable[None]]) -> Mended:
    """What was done, and why the thing could not be fetched again, if it could not."""
    try:
        await fetch()
    except ImgfsError as error:
        return Mended(finding.path, finding.what, done, error.message)
    return Mended(finding.path, finding.what, f"{done}, and fetched again")


async def _run(function: Callable[[], T]) -> T:
    """In a thread of this room; `_until_cancelled` ends it where it reads much."""
    return await trio.to_thread.run_sync(function, limiter=_THREADS)


def _until_cancelled(_: int) -> None:
    trio.from_thread.check_cancelled()
