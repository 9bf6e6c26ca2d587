"""Mending beside readers: the daemon looks at one thing itself, takes it out of service, and gets it again if it can.

Nothing is believed of who asks: he names a place, and what is wrong there is found here. The rest of the tree works
meanwhile. An interrupted caller leaves the thing as it was or set aside.
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
"""Mends that are remembered, for who asks what was done."""
_THREADS = trio.CapacityLimiter(2)
"""Hashing whole layers must not keep short work from the disk."""
_log = logging.getLogger("imgfs.check")


class Mended(msgspec.Struct, frozen=True):
    """What was wrong with a place, and what was done. `again` is why it could not be had again, empty where it was."""

    path: str
    what: str
    done: str
    again: str = ""


@dataclass(frozen=True, slots=True)
class Wards:
    """The rooms whose things are mended."""

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
    """Mends one thing after another of a state directory that is mounted."""

    def __init__(self, state: Path, tables: Tables, wards: Wards) -> None:
        self._state = state
        self._tables = tables
        self._wards = wards
        self._turn = trio.Lock()
        self.done: deque[Mended] = deque(maxlen=KEPT)
        """The latest, oldest first."""

    async def mend(self, place: str) -> Mended | None:
        """Look at `place`, every byte of it, and mend what is wrong; returns what was, None where all is well.

        Raises NotPermitted for what cannot be mended beside a daemon, Busy for what is in work, NoSpace, StorageFailed.
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
        wards = self._wards
        await _run(partial(wards.content.set_aside, digest))
        wards.documents.forget([digest])

        async def fetch() -> None:
            await wards.blobs.ensure(await known_descriptor(wards.catalog, digest))

        return await _again(finding, "set aside", fetch)

    async def _mend_layer(self, finding: Finding, diff_id: Digest) -> Mended:
        if diff_id in self._wards.layers:
            await self._wards.layers.set_aside(diff_id)
        else:
            await _run(partial(Repair(self._state, self._tables, _until_cancelled).mend, finding))
        return await self._serve_anew(finding, diff_id, "set aside")

    async def _renew_layer(self, finding: Finding, diff_id: Digest) -> Mended:
        """Its tar is gone, from under the store."""
        await self._wards.layers.discard(diff_id)
        return await self._serve_anew(finding, diff_id, "removed")

    async def _serve_anew(self, finding: Finding, diff_id: Digest, done: str) -> Mended:
        """Nobody new reads the old tar; who has it open goes on with it, and is told of."""
        wards = self._wards
        if busy := await wards.rootfs.renew_layers({diff_id}):
            done = f"{done}; until they are unmounted, these read the damaged one: {', '.join(busy)}"

        async def fetch() -> None:
            if (known := wards.graph.layer(diff_id)) is not None:
                await wards.provider.provide([known])

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
        await self._wards.metadata.remove(chain_id)
        busy = await self._wards.rootfs.renew({chain_id})
        until = f"; until they are unmounted, these show the damaged one: {', '.join(busy)}" if busy else ""
        return Mended(finding.path, finding.what, f"removed; the next walk makes it anew{until}")

    async def _mend_ingest(self, finding: Finding, name: str) -> Mended:
        if await self._wards.ingests.record_again(name):
            return Mended(finding.path, finding.what, "its record was written anew")
        done = await _run(partial(Repair(self._state, self._tables, _until_cancelled).mend, finding))
        return Mended(finding.path, finding.what, done)

    async def _mend_copy(self, finding: Finding) -> Mended:
        await self._wards.keeper.save()
        if (self._state / finding.path).exists() and await self._look(finding.path):
            await _run(partial(HOST.unlink, self._state / finding.path))
        return Mended(finding.path, finding.what, "written anew from the database")


async def _again(finding: Finding, done: str, fetch: Callable[[], Awaitable[None]]) -> Mended:
    """What was done, and whether it could be had again."""
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
