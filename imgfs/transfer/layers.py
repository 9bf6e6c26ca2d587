"""Layers on their way into the layer store: one flight a blob, one pass, served when verified, durable soon after."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from imgfs.aio.fair import FairLimiter
from imgfs.aio.flight import Flights
from imgfs.aio.threads import run_disk
from imgfs.content.copy import Copy, copy_ref
from imgfs.content.ingests import IngestStore
from imgfs.content.store import ContentStore
from imgfs.errors import ImgfsError, VerificationFailed
from imgfs.images.catalog import Catalog, Source
from imgfs.layers.compression import Compressions
from imgfs.layers.store import Layer, LayerStore, LayerWriter
from imgfs.layers.unpack import unpack
from imgfs.oci.descriptor import Descriptor, layer_compression, refuse_foreign
from imgfs.oci.digest import Digest
from imgfs.transfer.blobs import Blobs
from imgfs.transfer.copies import keeping, open_copy, resumed
from imgfs.transfer.failures import Failures
from imgfs.transfer.places import hosts_of, try_each
from imgfs.transfer.progress import Transfer, Transfers

if TYPE_CHECKING:
    from imgfs.registry.client import Registry

PASSES_A_HOST = 6
"""Layers that are unpacked side by side from one registry: more would cost memory (about 20 MiB each) and no time.

A limit for each host and not for all: a registry that does not answer must not hold back the others.
"""
SPARE_PASSES = 2
"""Further ones for images that have none: a small image does not wait until a large one is here."""

BREATH = 0.2
"""Seconds that the first reader of a new layer has for himself before it is made durable, unless somebody asks."""

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class _Passed:
    """A layer that is verified and served, with what is left to do about it."""

    descriptor: Descriptor
    layer: Layer
    writer: LayerWriter
    index: bytes
    copy: Copy | None


@dataclass(slots=True)
class _Settling:
    passed: _Passed
    wanted: trio.Event = field(default_factory=trio.Event)
    """Somebody waits for the end."""
    done: trio.Event = field(default_factory=trio.Event)
    error: ImgfsError | None = None


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
        self._nursery = nursery
        self._flights: Flights[Layer] = Flights(nursery)
        self._settling: dict[Digest, _Settling] = {}
        self._passes: dict[str, FairLimiter] = {}
        self._passed: dict[Digest, Digest] = {}
        """Diff IDs by blob, from the passes of this daemon: the catalogue has them only when the layer has settled."""

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
        # The passes of this daemon are asked last: one may have ended while the catalogue was read.
        known = known or await self._catalog.diff_id(descriptor.digest) or self._passed.get(descriptor.digest)
        if known is not None and known in self._layers:
            layer = self._layers.get(known)
            if not again:
                self._transfers.hit("layer", descriptor.size)
        else:
            key = descriptor.digest, descriptor.size, descriptor.media_type, hosts_of(own)
            self._transfers.missed("layer", shared=key in self._flights)
            layer = await self._flights.join(key, lambda: self._fetch(descriptor, own, image))
        if diff_id is not None:
            self._check(descriptor, layer, diff_id)
        return layer

    def settling(self) -> list[Digest]:
        """The diff IDs of layers that are here but not yet on record."""
        return list(self._settling)

    async def settled(self, *layers: Layer) -> None:
        """Wait until `layers` survive a power cut; what failed before is tried again. Raises NoSpace, StorageFailed."""
        for settling in [self._settling[one.diff_id] for one in layers if one.diff_id in self._settling]:
            if settling.error is not None:
                self._settle_behind(settling.passed)
        behind = [settling for layer in layers if (settling := self._settling.get(layer.diff_id))]
        for settling in behind:
            settling.wanted.set()
        for settling in behind:
            await settling.done.wait()
            if settling.error is not None:
                raise settling.error

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
        try:
            # Whoever reads it as content, or pushes it, has it come: the same bytes come once.
            await self._blobs.ensure_with_others(descriptor, own)
            if descriptor.digest in self._content:
                layer = await self._unpack_stored(descriptor)
            else:
                refuse_foreign(descriptor)
                layer = await try_each(
                    self._catalog, descriptor.digest, lambda source: self._unpack_from(source, descriptor, image), own
                )
        except ImgfsError as fault:
            error = _naming(descriptor, fault)
            self._failures.note(descriptor.digest, error)
            raise error from None
        self._failures.clear(descriptor.digest)
        return layer

    async def _unpack_from(self, source: Source, descriptor: Descriptor, image: Digest | None) -> Layer:
        limiter = self._passes.setdefault(source.host, FairLimiter(PASSES_A_HOST, SPARE_PASSES))
        async with limiter.place(image):
            with self._transfers.begin(
                direction="pull",
                digest=descriptor.digest,
                total=descriptor.size,
                host=source.host,
                repository=source.repository,
                ref=copy_ref(descriptor.digest),
            ) as transfer:
                copy = await open_copy(self._ingests, descriptor)
                if copy is None:
                    return await self._download(source, descriptor, transfer, None)
                return await keeping(copy, lambda: self._download(source, descriptor, transfer, copy))

    async def _download(self, source: Source, descriptor: Descriptor, transfer: Transfer, copy: Copy | None) -> Layer:
        def ask(at: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
            return self._registry.blob(source.host, source.repository, descriptor, at, failed=transfer.failed)

        if copy is not None and copy.start:
            transfer.at(copy.start)
            async with aclosing(resumed(copy, ask, descriptor.size)) as whole:
                return await self._pass(descriptor, whole, _beyond(copy.start, transfer.advance), copy)
        async with ask(0) as stream:
            return await self._pass(descriptor, stream, transfer.advance, copy)

    async def _unpack_stored(self, descriptor: Descriptor) -> Layer:
        """The blob was read as content before: no request for bytes that are here."""
        file = self._content.open(descriptor.digest)
        try:
            return await self._pass(descriptor, _read_file(file), lambda _: None)
        finally:
            os.close(file)

    async def _pass(
        self,
        descriptor: Descriptor,
        stream: AsyncIterable[bytes],
        moved: Callable[[int], None],
        copy: Copy | None = None,
    ) -> Layer:
        with ExitStack() as undo:
            writer = undo.enter_context(self._layers.writer())
            decompressor = self._compressions.of(descriptor.media_type).open()
            unpacked = await unpack(descriptor, decompressor, stream, writer, moved, copy)
            layer = writer.adopt(unpacked.diff_id, unpacked.entries)
            undo.pop_all()
        self._settle_behind(_Passed(descriptor, layer, writer, unpacked.index, copy))
        return layer

    def _settle_behind(self, passed: _Passed) -> None:
        settling, diff_id = _Settling(passed), passed.layer.diff_id
        self._passed[passed.descriptor.digest] = diff_id
        if (running := self._settling.get(diff_id)) is None or running.passed is passed:
            self._settling[diff_id] = settling
        self._nursery.start_soon(self._settle_soon, passed, settling, running)

    async def _settle_soon(self, passed: _Passed, settling: _Settling, running: _Settling | None) -> None:
        """Settle as soon as somebody waits for it or the daemon is told to stop, else after a breath."""
        try:
            if running is None and not self._layers.is_settled(passed.layer):
                with trio.move_on_after(BREATH):
                    await settling.wanted.wait()
        finally:
            await self._settle(passed, settling, running)

    async def _settle(self, passed: _Passed, settling: _Settling, running: _Settling | None) -> None:
        """Runs shielded: once verified, a layer is kept even if the daemon is told to stop in this moment."""
        descriptor, layer = passed.descriptor, passed.layer
        try:
            with trio.CancelScope(shield=True):
                if passed.copy is not None:
                    await passed.copy.close(keep=False)  # first: what is gone before it is synced, costs no disk
                if running is not None:
                    await running.done.wait()  # an equal layer from another blob is on its way to its final name
                await run_disk(passed.writer.settle, passed.index)
                if layer_compression(descriptor.media_type) == "none":
                    await self._content.adopt(descriptor.digest, layer.tar)
                    await self._content.share(descriptor.digest, layer.tar)
                await self._catalog.prove_diff_id(descriptor, layer.diff_id)
            if running is not None and running.passed is passed:
                self._failures.clear(descriptor.digest)
        except ImgfsError as error:
            settling.error = error
            self._failures.note(descriptor.digest, error)
        finally:
            is_lost = passed.writer.is_lost
            if is_lost:
                self._layers.lose(layer)
            # Another failure stays, with the writer: this layer is served, and whoever asks has it tried again.
            if settling.error is None or is_lost:
                passed.writer.__exit__()
                if self._settling.get(layer.diff_id) is settling:
                    del self._settling[layer.diff_id]
            settling.done.set()


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
