"""Layers on their way into the layer store: one flight a blob, one pass, served when verified, durable soon after.

A large layer is unpacked while it comes. A small one is gathered in memory first, and unpacked in one go: so requests
for many of them are on the way at once, and no place at the registry waits for a disk.
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
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.errors import ImgfsError, VerificationFailed
from imgfs.failures import Failures
from imgfs.images.catalog import Catalog
from imgfs.layers.compression import Compressions, Decompressor
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.layers.unpack import unpack, unpack_whole
from imgfs.layers.writer import LayerWriter
from imgfs.oci.descriptor import Descriptor, refuse_foreign
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.copies import is_small, keeping, open_copy, resumed
from imgfs.transfer.passes import Passes, Passing
from imgfs.transfer.places import try_each, wanted
from imgfs.transfer.progress import Transfer, Transfers
from imgfs.transfer.settling import Passed, Settling

if TYPE_CHECKING:
    from imgfs.registry.client import Registry

_GoOver = Callable[[Decompressor, LayerWriter], Awaitable[Digest]]
"""Makes a layer of a blob: goes over it with a decompressor, into a writer. Returns the diff ID."""

PASSES_A_HOST = 6
"""Layers that are unpacked while they come, side by side from one registry: more would cost memory (about 20 MiB each)
and no time.

A limit for each host and not for all: a registry that does not answer must not hold back the others.
"""
SPARE_PASSES = 2
"""Further ones for images that have none: a small image does not wait until a large one is here."""

GATHERED_A_HOST = 24
SPARE_GATHERED = 8
"""The same of small layers, at most so many MiB: enough for a link of 100 MB/s where a trip takes 50 ms, and fewer than
one registry may be asked for at a time, so that another image of the same repository gets through."""

UNPACKED_AT_ONCE = 4
SPARE_UNPACKED = 2
"""Of all that are gathered, those that are unpacked now."""

_READ = 1 << 20


class _Lanes:
    """The places at one registry."""

    def __init__(self) -> None:
        self.passes = FairLimiter(PASSES_A_HOST, SPARE_PASSES)
        self.gathered = FairLimiter(GATHERED_A_HOST, SPARE_GATHERED)


class Layers:
    """Gets layers here. A blob whose diff ID is known and present is never asked for again, whatever image wants it."""

    def __init__(
        self,
        layers: LayerStore,
        content: ContentStore,
        ingests: IngestStore,
        compressions: Compressions,
        blobs: Blobs,
        catalog: Catalog,
        registry: Registry,
        transfers: Transfers,
        failures: Failures,
        passes: Passes,
        nursery: trio.Nursery,
    ) -> None:
        self._layers = layers
        self._content = content
        self._ingests = ingests
        self._compressions = compressions
        self._blobs = blobs
        self._catalog = catalog
        self._registry = registry
        self._transfers = transfers
        self._failures = failures
        self._flights: Flights[Layer] = Flights(nursery)
        self._settling = Settling(layers, content, ingests, catalog, failures, passes, nursery)
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
        """The layer, verified against its blob digest, and against `diff_id` unless that is None.

        `own` are the places of the image that asks, and images take turns. Raises what try_each raises, Malformed,
        TooLarge, Unsupported, NoSpace, StorageFailed. However many ask for the same at once, one pass is made. A
        cancelled caller leaves the pass to the others. `again`: the same caller asked just before, which counts once.
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
        """Those of which nobody knows that they are here; one look at the catalogue for all of them."""
        known = await self._catalog.unpacked([descriptor.digest for descriptor in descriptors])
        here = {blob for blob, diff_id in known.items() if diff_id in self._layers}
        return [descriptor for descriptor in descriptors if descriptor.digest not in here]

    async def bring(self, descriptor: Descriptor, own: tuple[Source, ...], image: Digest | None) -> Layer:
        """As `ensure` for a layer that is not in the catalogue and whose diff ID nobody has said yet."""
        # What passes of this daemon found is not in the catalogue at once: one may have ended while that was read.
        found = self._settling.diff_id(descriptor.digest)
        if found is not None and found in self._layers:
            self._transfers.hit("layer", descriptor.size)
            return self._layers.get(found)
        key = wanted(descriptor, own)
        self._transfers.missed("layer", shared=key in self._flights)
        return await self._flights.join(key, lambda: self._fetch(descriptor, own, image))

    def hit(self, sizes: Sequence[int]) -> None:
        """Somebody wanted layers whose blobs have these sizes, and has seen that they are here."""
        for size in sizes:
            self._transfers.hit("layer", size)

    def settling(self) -> list[Digest]:
        """The diff IDs of layers that are here but not yet on record."""
        return list(self._settling)

    def hurry(self, layer: Layer) -> None:
        """Begin to make it survive a power cut, and let the caller go on."""
        self._settling.hurry(layer)

    async def settled(self, *layers: Layer) -> None:
        """Wait until `layers` survive a power cut; what failed before is tried again. Raises NoSpace, StorageFailed."""
        await self._settling.wait(*layers)

    def check_readable(self, descriptor: Descriptor) -> None:
        """Raise Unsupported where a layer is no tar, or none whose compression can be undone here."""
        self._compressions.of(descriptor.media_type)

    def _check(self, descriptor: Descriptor, layer: Layer, diff_id: Digest) -> None:
        if layer.diff_id != diff_id:
            error = VerificationFailed(
                f"layer {descriptor.digest}: its tar has digest {layer.diff_id}, the image config says {diff_id}"
            )
            self._failures.note(descriptor.digest, error)
            raise error

    async def _fetch(self, descriptor: Descriptor, own: tuple[Source, ...], image: Digest | None) -> Layer:
        key = wanted(descriptor, own)
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
        async with (lanes.gathered if small else lanes.passes).place(image):
            if passing not in self._passes:
                # Whoever reads it as content, or pushes it, has it come: the same bytes come once.
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
            async with self._unpacking.place(image):
                return await self._pass(descriptor, passing, go_over, blob=blob)

    async def _unpack_coming(self, source: Source, descriptor: Descriptor, passing: Passing) -> Layer:
        with self._transfers.pull(descriptor, source, copy_ref(descriptor.digest)) as transfer:
            copy = await open_copy(self._ingests, descriptor)
            if copy is None:
                self._passes.end(passing)  # nothing is kept that could become the blob
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
        """The blob was read as content before: no request for bytes that are here."""
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
        self._settling.settle_behind(Passed(descriptor, layer, writer, passing, copy, whole))
        return layer


def _beyond(start: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """`advance` for a stream whose first `start` bytes are here: they come from the disk and are no transfer."""
    left = start

    def moved(count: int) -> None:
        nonlocal left
        here = min(left, count)
        left -= here
        if count > here:
            advance(count - here)

    return moved


def _naming(descriptor: Descriptor, error: ImgfsError) -> ImgfsError:
    """`error` with the layer's digest in its sentence: a fault in a tar is told by whoever knows only the tar."""
    if descriptor.digest in error.message:
        return error
    return type(error)(f"layer {descriptor.digest}: {error.message}")


async def _read_file(file: int) -> AsyncIterator[bytes]:
    offset = 0
    while piece := await run_disk(os.pread, file, _READ, offset):
        offset += len(piece)
        yield piece
