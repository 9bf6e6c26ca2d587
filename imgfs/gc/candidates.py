"""What was stored when a cycle began. Only this is ever judged: what is stored later is too young to be garbage.

A thing counts as the same only while its store holds the same object for it. A thing that was removed and stored again
is young.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.downloads import copy_ref, download_ref
from imgfs.content.ingests.refs import promised_digest, ref_name
from imgfs.content.ingests.status import IngestStatus
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import BlobInfo
from imgfs.gc.stores import GarbageStores
from imgfs.layers.layer import Layer
from imgfs.oci.digest import Digest
from imgfs.snapshots.graph import Snapshot


@dataclass(frozen=True, slots=True)
class LayerCandidate:
    """A layer, its bytes on disk, and when it was stored (ns since the epoch)."""

    layer: Layer
    bytes: int
    stored: int


@dataclass(frozen=True, slots=True)
class PartCandidate:
    """A part of the blob `digest` that no writer holds, and its bytes on disk.

    It was begun by a download of imgfs. A user may have written under the same ref: the bytes are a part of something
    that can be fetched in any case.
    """

    status: IngestStatus
    digest: Digest
    bytes: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """Everything that was stored, sorted by name. `metadata` are chain IDs and bytes, `known` the catalogue's digests.

    The object holds the layers, so their descriptors stay open as long as it lives.
    """

    blobs: list[BlobInfo]
    layers: list[LayerCandidate]
    parts: list[PartCandidate]
    """Interrupted downloads, which go first when space is short."""
    abandoned: list[tuple[IngestStatus, int]]
    """Unfinished writes that had no writer for long, and their bytes on disk."""
    chains: list[Snapshot]
    metadata: list[tuple[Digest, int]]
    known: set[Digest]
    unpacked: set[Digest]
    """Diff IDs of `layers`."""

    def bytes_of(self, blob: BlobInfo) -> int:
        """Bytes that are freed with this blob alone: an uncompressed layer is one file with two names."""
        return 0 if blob.digest in self.unpacked else blob.allocated


async def candidates(stores: GarbageStores) -> Candidates:
    """List everything that is stored now. Raises StorageFailed."""
    chains = list(stores.graph)
    blobs = sorted(stores.content, key=lambda info: info.digest)
    durable = [layer for layer in stores.layers if stores.layers.is_durable(layer)]
    known = await stores.catalog.digests()
    layers = await run_disk(_measure_layers, durable)
    metadata = sorted(await run_disk(stores.images.stored))
    return Candidates(
        blobs=blobs,
        layers=layers,
        parts=await _parts(stores.ingests),
        abandoned=await _abandoned(stores.ingests, stores.patience),
        chains=chains,
        metadata=metadata,
        known=known,
        unpacked={one.layer.diff_id for one in layers},
    )


async def unfinished_bytes(ingests: IngestStore) -> int:
    """Bytes on disk of all unfinished writes, without copies in progress, which are removed when they are complete."""
    lasting = [status for status in ingests if not status.is_copy]
    return await run_disk(lambda: sum(_allocated(status) or 0 for status in lasting))


def is_abandoned(status: IngestStatus, patience: float) -> bool:
    """Whether the unfinished write has had no writer for `patience` seconds."""
    return not status.is_live and status.idle_seconds >= patience


def shown(ref: str) -> str:
    """A ref as reports show it: like the name of its file, and always valid text."""
    return os.fsencode(ref_name(ref)).decode(errors="backslashreplace")


async def _parts(ingests: IngestStore) -> list[PartCandidate]:
    idle = sorted((status for status in ingests if not status.is_live), key=lambda status: status.ref)
    return await run_disk(_measure_parts, [(status, digest) for status in idle if (digest := _fetched(status.ref))])


async def _abandoned(ingests: IngestStore, patience: float) -> list[tuple[IngestStatus, int]]:
    idle = sorted((status for status in ingests if is_abandoned(status, patience)), key=lambda status: status.ref)
    return await run_disk(lambda: [(status, found) for status in idle if (found := _allocated(status)) is not None])


def _fetched(ref: str) -> Digest | None:
    """The digest of the blob that imgfs fetches under `ref`; None for any other ref."""
    digest = promised_digest(ref)
    return digest if digest is not None and ref in (copy_ref(digest), download_ref(digest)) else None


def _measure_layers(layers: Iterable[Layer]) -> list[LayerCandidate]:
    found: list[LayerCandidate] = []
    for layer in sorted(layers, key=lambda one: one.diff_id):
        try:
            status = os.stat(layer.tar)
        except FileNotFoundError:
            continue
        found.append(LayerCandidate(layer, status.st_blocks * 512, status.st_mtime_ns))
    return found


def _measure_parts(parts: list[tuple[IngestStatus, Digest]]) -> list[PartCandidate]:
    measured = [(status, digest, _allocated(status)) for status, digest in parts]
    return [PartCandidate(status, digest, size) for status, digest, size in measured if size is not None]


def _allocated(status: IngestStatus) -> int | None:
    """Bytes on disk; None if the write was removed meanwhile."""
    try:
        return os.stat(status.path).st_blocks * 512
    except FileNotFoundError:
        return None
