"""Fetches layers into the layer store: one flight and one pass for each blob. A verified layer is served at once and
made durable soon after.

A large layer is unpacked while it arrives. A small layer is first collected in memory and then unpacked in one call. So
many small layers are requested at once, and no connection to a registry waits for the disk.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgfs.aio.fair import FairLimiter
from imgfs.aio.flight import Flights
from imgfs.aio.threads import run_disk
from imgfs.content.ingests.downloads import LayerCopy, copy_ref
from imgfs.errors import ImgfsError, VerificationFailed
from imgfs.layers.compression import Compressions, Decompressor
from imgfs.layers.layer import Layer
from imgfs.layers.unpack import unpack, unpack_whole
from imgfs.layers.writer import LayerWriter
from imgfs.oci.descriptor import Descriptor, refuse_foreign
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.copies import is_small, keeping, open_copy, resumed
from imgfs.transfer.layer_sync import LayerSync, UnpackedLayer
from imgfs.transfer.local_state import LocalState
from imgfs.transfer.locations import fetch_key, try_each
from imgfs.transfer.passes import Passes, Passing
from imgfs.transfer.transfers import Transfer, Transfers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry

_GoOver = Callable[[Decompressor, LayerWriter], Awaitable[Digest]]
"""Unpacks a blob with a decompressor into a writer. Returns the diff ID."""

PASSES_A_HOST = 6
"""Large layers of one registry that are unpacked at the same time. More would cost memory (about 20 MiB each) and save
no time.

The limit is for each host, because a registry that does not answer must not delay the others.
"""
SPARE_PASSES = 2
"""Additional slots for images that have none, so that a small image does not wait for a large one."""

GATHERED_A_HOST = 24
SPARE_GATHERED = 8
"""The same limits for small layers, which also bound their memory to as many MiB. They are enough for a link of 100
MB/s with a round trip of 50 ms. They are lower than the request limit of a registry, so that other images of the same
repository can send requests.
"""

UNPACKED_AT_ONCE = 4
SPARE_UNPACKED = 2
"""Small layers that are unpacked at the same time."""

_READ = 1 << 20


class _Lanes:
    """The limiters of one registry."""

    def __init__(self) -> None:
        self.passes = FairLimiter(PASSES_A_HOST, SPARE_PASSES)
        self.gathered = FairLimiter(GATHERED_A_HOST, SPARE_GATHERED)


class Layers:
    """Fetches layers. A blob whose layer is stored is never requested again, whichever image needs it."""

    def __init__(
        self,
        local: LocalState,
        compressions: Compressions,
        blobs: Blobs,
        registry: Registry,
        transfers: Transfers,
        passes: Passes,
        nursery: trio.Nursery,
    ) -> None:
        self._layers = local.layers
        self._content = local.content
        self._ingests = local.ingests
        self._catalog = local.catalog
        self._failures = local.failures
        self._compressions = compressions
        self._blobs = blobs
        self._registry = registry
        self._transfers = transfers
        self._flights: Flights[Layer] = Flights(nursery)
        self._layer_sync = LayerSync(local, passes, nursery)
        self._passes = passes
        self._lanes: dict[str, _Lanes] = {}
        self._unpacking = FairLimiter(UNPACKED_AT_ONCE, SPARE_UNPACKED)

    async def ensure(
        self,
        descriptor: Descriptor,
        diff_id: Digest | None,
        own: tuple[Source, ...] = (),
        image: Digest | None = None,
        *,
        again: bool = False,
    ) -> Layer:
        """Return the layer, verified against its blob digest, and against `diff_id` unless that is None.

        `own` are the locations of the requesting `image`; images take turns. Concurrent callers share one pass. A
        cancelled caller leaves the pass to the others. With `again` the request is not counted in the metrics, because
        the same caller was counted before. Raises what try_each raises, Malformed, TooLarge, Unsupported, NoSpace,
        StorageFailed.
        """
        known = diff_id if diff_id is not None and diff_id in self._layers else None
        known = known or await self._catalog.diff_id(descriptor.digest)
        if known is not None and known in self._layers:
            layer = self._layers.get(known)
            if not again:
                self._transfers.hit("layer", descriptor.size)
        else:
            layer = await self.bring(descriptor, own, image)
        if diff_id is not None:
            self._check(descriptor, layer, diff_id)
        return layer

    async def missing(self, descriptors: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the descriptors whose layers are not known to be stored.

        One query of the catalogue for all of them.
        """
        known = await self._catalog.unpacked([descriptor.digest for descriptor in descriptors])
        here = {blob for blob, diff_id in known.items() if diff_id in self._layers}
        return [descriptor for descriptor in descriptors if descriptor.digest not in here]

    async def bring(self, descriptor: Descriptor, own: tuple[Source, ...], image: Digest | None) -> Layer:
        """Return a layer that is not in the catalogue and whose diff ID is unknown. Raises as `ensure`."""
        # A pass may have ended while the catalogue was read. Its result is recorded there only later.
        found = self._layer_sync.diff_id(descriptor.digest)
        if found is not None and found in self._layers:
            self._transfers.hit("layer", descriptor.size)
            return self._layers.get(found)
        key = fetch_key(descriptor, own)
        self._transfers.missed("layer", shared=key in self._flights)
        return await self._flights.join(key, lambda: self._fetch(descriptor, own, image))

    def hit(self, sizes: Sequence[int]) -> None:
        """Count requests for stored layers whose blobs have these sizes."""
        for size in sizes:
            self._transfers.hit("layer", size)

    def syncing(self) -> list[Digest]:
        """Return the diff IDs of layers that are served but not durable yet."""
        return list(self._layer_sync)

    def hurry(self, layer: Layer) -> None:
        """Start making a layer durable now, without waiting."""
        self._layer_sync.hurry(layer)

    async def wait_durable(self, *layers: Layer) -> None:
        """Wait until `layers` are durable. A layer that failed before is retried. Raises NoSpace, StorageFailed."""
        await self._layer_sync.wait(*layers)

    def check_readable(self, descriptor: Descriptor) -> None:
        """Raise Unsupported if a layer is no tar, or if no plugin provides its compression."""
        self._compressions.of(descriptor.media_type)

    def _check(self, descriptor: Descriptor, layer: Layer, diff_id: Digest) -> None:
        if layer.diff_id != diff_id:
            error = VerificationFailed(
                f"layer {descriptor.digest}: its tar has digest {layer.diff_id}, the image config says {diff_id}"
            )
            self._failures.note(descriptor.digest, error)
            raise error

    async def _fetch(self, descriptor: Descriptor, own: tuple[Source, ...], image: Digest | None) -> Layer:
        key = fetch_key(descriptor, own)
        passing = Passing(key, lambda: self._flights.accompany(key))
        try:
            if descriptor.digest in self._content:
                layer = await self._unpack_stored(descriptor, passing)
            else:
                refuse_foreign(descriptor)
                fetch = partial(self._unpack_from, descriptor, own, image, passing)
                layer = await try_each(self._catalog, descriptor.digest, fetch, own)
        except ImgfsError as fault:
            error = _naming(descriptor, fault)
            self._passes.end(passing, error)
            self._failures.note(descriptor.digest, error)
            raise error from None
        except BaseException:
            self._passes.end(passing)
            raise
        self._failures.clear(descriptor.digest)
        return layer

    async def _unpack_from(
        self,
        descriptor: Descriptor,
        own: tuple[Source, ...],
        image: Digest | None,
        passing: Passing,
        source: Source,
    ) -> Layer:
        lanes = self._lanes.setdefault(source.host, _Lanes())
        small = is_small(descriptor)
        async with (lanes.gathered if small else lanes.passes).slot(image):
            if passing not in self._passes:
                # A reader of content/ or a push may be fetching the same blob: wait for it instead of a second request.
                await self._blobs.ensure_with_others(descriptor, own)
                if descriptor.digest in self._content:
                    return await self._unpack_stored(descriptor, passing)
                self._passes.begin(passing)
            if small:
                return await self._unpack_gathered(source, descriptor, image, passing)
            return await self._unpack_coming(source, descriptor, passing)

    async def _unpack_gathered(
        self, source: Source, descriptor: Descriptor, image: Digest | None, passing: Passing
    ) -> Layer:
        blob = list[bytes]()

        async def go_over(decompressor: Decompressor, writer: LayerWriter) -> Digest:
            try:
                return await unpack_whole(descriptor, decompressor, blob, writer)
            except VerificationFailed as error:
                raise self._registry.blame(source.host, descriptor.digest, error) from None

        with self._transfers.pull(descriptor, source, copy_ref(descriptor.digest)) as transfer:
            async with self._ask(source, descriptor, transfer, 0) as stream:
                async for piece in stream:
                    transfer.advance(len(piece))
                    blob.append(piece)
            async with self._unpacking.slot(image):
                return await self._pass(descriptor, passing, go_over, blob=blob)

    async def _unpack_coming(self, source: Source, descriptor: Descriptor, passing: Passing) -> Layer:
        with self._transfers.pull(descriptor, source, copy_ref(descriptor.digest)) as transfer:
            copy = await open_copy(self._ingests, descriptor)
            if copy is None:
                self._passes.end(passing)  # without a copy there will be no blob
                return await self._download(source, descriptor, transfer, None, passing)
            return await keeping(copy, lambda: self._download(source, descriptor, transfer, copy, passing))

    def _ask(
        self, source: Source, descriptor: Descriptor, transfer: Transfer, at: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._registry.blob(source.host, source.repository, descriptor, at, failed=transfer.failed)

    async def _download(
        self, source: Source, descriptor: Descriptor, transfer: Transfer, copy: LayerCopy | None, passing: Passing
    ) -> Layer:
        ask = partial(self._ask, source, descriptor, transfer)
        if copy is not None and copy.start:
            transfer.at(copy.start)
            moved = _beyond(copy.start, transfer.advance)
            async with aclosing(resumed(copy, ask, descriptor.size)) as whole:
                return await self._pass_stream(descriptor, whole, moved, passing, copy)
        async with ask(0) as stream:
            return await self._pass_stream(descriptor, stream, transfer.advance, passing, copy)

    async def _unpack_stored(self, descriptor: Descriptor, passing: Passing) -> Layer:
        """Unpack a blob that is in the content store, without a request."""
        file = self._content.open(descriptor.digest)
        try:
            return await self._pass_stream(descriptor, _read_file(file), lambda _: None, passing, None)
        finally:
            os.close(file)

    async def _pass_stream(
        self,
        descriptor: Descriptor,
        stream: AsyncIterable[bytes],
        moved: Callable[[int], None],
        passing: Passing,
        copy: LayerCopy | None,
    ) -> Layer:
        def go_over(decompressor: Decompressor, writer: LayerWriter) -> Awaitable[Digest]:
            return unpack(descriptor, decompressor, stream, writer, moved, copy)

        return await self._pass(descriptor, passing, go_over, copy)

    async def _pass(
        self,
        descriptor: Descriptor,
        passing: Passing,
        go_over: _GoOver,
        copy: LayerCopy | None = None,
        blob: Sequence[bytes] = (),
    ) -> Layer:
        with ExitStack() as undo:
            writer = undo.enter_context(self._layers.writer())
            decompressor = self._compressions.of(descriptor.media_type).open()
            layer = writer.adopt(await go_over(decompressor, writer))
            undo.pop_all()
        whole = b"".join(blob) if passing.is_read else b""
        self._layer_sync.sync_behind(UnpackedLayer(descriptor, layer, writer, passing, copy, whole))
        return layer


def _beyond(start: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Wrap `advance` so that it skips the first `start` bytes, which come from the disk and not from the registry."""
    left = start

    def moved(count: int) -> None:
        nonlocal left
        here = min(left, count)
        left -= here
        if count > here:
            advance(count - here)

    return moved


def _naming(descriptor: Descriptor, error: ImgfsError) -> ImgfsError:
    """Return `error` with the digest of the layer in its message. The tar parser does not know the digest."""
    if descriptor.digest in error.message:
        return error
    return type(error)(f"layer {descriptor.digest}: {error.message}")


async def _read_file(file: int) -> AsyncIterator[bytes]:
    offset = 0
    while piece := await run_disk(os.pread, file, _READ, offset):
        offset += len(piece)
        yield piece
