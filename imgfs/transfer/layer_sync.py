"""Makes verified layers durable in the background: the copy of the blob, the final name, the row in the catalogue.

This module owns the set of layers that are served but not durable yet, and the handling of a disk that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.downloads import LayerCopy, copy_ref
from imgfs.errors import ImgfsError, StorageFailed
from imgfs.layers.layer import Layer
from imgfs.layers.writer import LayerWriter
from imgfs.oci.descriptor import Descriptor, layer_compression
from imgfs.oci.digest import Digest
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.passes import Passes, Passing

_log = logging.getLogger("imgfs.transfer")

SYNC_DELAY = 0.2
"""Seconds before a new layer is made durable, if no caller waits for it. The first reader has the disk to itself."""


@dataclass(frozen=True, slots=True)
class UnpackedLayer:
    """A layer that is verified and served, with everything that is needed to make it durable."""

    descriptor: Descriptor
    layer: Layer
    writer: LayerWriter
    passing: Passing
    copy: LayerCopy | None
    blob: bytes
    """The whole blob, if a reader waits for it and there is no copy; else empty."""


@dataclass(slots=True)
class _Sync:
    passed: UnpackedLayer
    done: trio.Event = field(default_factory=trio.Event)
    error: ImgfsError | None = None


class LayerSync:
    """Makes layers durable, in tasks of `nursery`, which outlive the callers that fetched the layers."""

    def __init__(self, local: LocalState, passes: Passes, nursery: trio.Nursery) -> None:
        self._layers = local.layers
        self._content = local.content
        self._ingests = local.ingests
        self._catalog = local.catalog
        self._failures = local.failures
        self._passes = passes
        self._nursery = nursery
        self._syncing: dict[Digest, _Sync] = {}
        self._diff_ids: dict[Digest, Digest] = {}

    def __iter__(self) -> Iterator[Digest]:
        """Iterate over the diff IDs of layers that are not durable yet."""
        return iter(list(self._syncing))

    def diff_id(self, blob: Digest) -> Digest | None:
        """Return the diff ID of `blob` if this daemon unpacked it.

        The catalogue has it only once the layer is durable.
        """
        return self._diff_ids.get(blob)

    async def wait(self, *layers: Layer) -> None:
        """Wait until `layers` are durable. A layer that failed before is retried. Raises NoSpace, StorageFailed.

        A failed attempt has ended completely. So a caller that has freed disk space and retries never gets the error of
        the earlier attempt.
        """
        for one in layers:
            if one.diff_id not in self._layers:
                raise StorageFailed(f"layer {one.diff_id}: was taken away before it was on disk; read again")
        for sync in [self._syncing[one.diff_id] for one in layers if one.diff_id in self._syncing]:
            if sync.error is not None:
                self.sync_behind(sync.passed)
        behind = [sync for layer in layers if (sync := self._syncing.get(layer.diff_id))]
        for layer in layers:
            self.hurry(layer)
        for sync in behind:
            await sync.done.wait()
        if error := next((sync.error for sync in behind if sync.error is not None), None):
            raise error

    def hurry(self, layer: Layer) -> None:
        """Start making the layer durable now. The caller waits for it later."""
        if sync := self._syncing.get(layer.diff_id):
            sync.passed.passing.hurried.set()

    def sync_behind(self, passed: UnpackedLayer) -> None:
        """Make a layer durable in the background."""
        sync, diff_id = _Sync(passed), passed.layer.diff_id
        self._diff_ids[passed.descriptor.digest] = diff_id
        if (running := self._syncing.get(diff_id)) is None or running.passed is passed:
            self._syncing[diff_id] = sync
        self._nursery.start_soon(self._sync_soon, passed, sync, running)

    async def _sync_soon(self, passed: UnpackedLayer, sync: _Sync, running: _Sync | None) -> None:
        """Sync as soon as a caller waits or the daemon stops, else after SYNC_DELAY seconds."""
        try:
            if running is None and not self._layers.is_durable(passed.layer):
                with trio.move_on_after(SYNC_DELAY):
                    await passed.passing.hurried.wait()
        finally:
            await self._sync(passed, sync, running)

    async def _sync(self, passed: UnpackedLayer, sync: _Sync, running: _Sync | None) -> None:
        """Sync one layer, shielded: a verified layer is kept even if the daemon stops at this moment."""
        descriptor, layer = passed.descriptor, passed.layer
        try:
            with trio.CancelScope(shield=True):
                await self._close_copy(passed)
                if running is not None:
                    await running.done.wait()  # an equal layer, from another blob, is being synced
                await run_disk(passed.writer.make_durable)
                if _is_its_blob(passed):
                    await self._content.adopt(descriptor.digest, layer.tar)
                    await self._content.share(descriptor.digest, layer.tar)
                await self._catalog.prove_diff_id(descriptor, layer.diff_id)
            if running is not None and running.passed is passed:
                self._failures.clear(descriptor.digest)
        except ImgfsError as error:
            sync.error = error
            self._failures.note(descriptor.digest, error)
        finally:
            is_lost = passed.writer.is_lost
            if is_lost:
                self._layers.lose(layer)
            # After another failure the layer is still served. Its writer stays open for the retry of the next caller.
            if sync.error is None or is_lost:
                passed.writer.__exit__()
                if self._syncing.get(layer.diff_id) is sync:
                    del self._syncing[layer.diff_id]
            self._passes.end(passed.passing)
            sync.done.set()

    async def _close_copy(self, passed: UnpackedLayer) -> None:
        """Store the copy as the blob if a reader waits for the blob.

        Otherwise delete it before it is written to disk.
        """
        if not _is_its_blob(passed):
            if passed.passing.is_read:
                await self._keep_blob(passed)
            self._passes.end(passed.passing)  # later callers cannot wait for this blob any more
        if passed.copy is not None:
            await passed.copy.close(keep=False)

    async def _keep_blob(self, passed: UnpackedLayer) -> None:
        """Store the blob. If that fails, the waiting reader fetches the blob itself and receives the error."""
        digest = passed.descriptor.digest
        try:
            if passed.copy is not None and passed.copy.is_whole:
                await passed.copy.close(keep=True)
                await self._ingests.commit(copy_ref(digest), digest)
            elif passed.blob:
                await self._content.add(digest, passed.blob)
        except ImgfsError as error:
            _log.warning("blob not kept", extra={"digest": digest, "error": error.message})


def _is_its_blob(passed: UnpackedLayer) -> bool:
    """Return whether the blob is uncompressed. Its bytes are then the tar, and one file serves as both."""
    return layer_compression(passed.descriptor.media_type) == "none"
