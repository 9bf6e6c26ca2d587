"""Unpacks blobs into a layer store, as transfer/ does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.layers.compression import Decompressor
from imgfs.layers.entry import Entry
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.layers.unpack import unpack, unpack_whole
from imgfs.layers.writer import LayerWriter
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.testing.build import BuiltLayer as Made
from tests.support.compressions import COMPRESSIONS


def described(made: Made, **other: object) -> Descriptor:
    """Return the descriptor of a layer, with `other` fields replaced."""
    return replace(Descriptor(made.digest, len(made.blob), made.media_type(docker=False)), **other)


def passing(descriptor: Descriptor) -> tuple[Descriptor, Decompressor]:
    """Return the objects with which the pass of a layer begins."""
    return descriptor, COMPRESSIONS.of(descriptor.media_type).open()


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@dataclass(frozen=True)
class Unpacked:
    """The result of a pass in its writer."""

    diff_id: Digest
    entries: list[Entry]


async def passed(store: LayerStore, descriptor: Descriptor, *pieces: bytes) -> Unpacked:
    """Unpack a layer as a stream and as a whole, and check that both have the same result."""
    first = await _outcome(store, lambda writer: unpack(*passing(descriptor), stream(*pieces), writer, lambda _: None))
    second = await _outcome(store, lambda writer: unpack_whole(*passing(descriptor), pieces, writer))
    assert str(first) == str(second)
    if isinstance(first, ImgfsError):
        assert type(first) is type(second)
        raise first
    assert first == second
    return first


async def _outcome(store: LayerStore, work: Callable[[LayerWriter], Awaitable[Digest]]) -> Unpacked | ImgfsError:
    with store.writer() as writer:
        try:
            diff_id = await work(writer)
        except ImgfsError as error:
            return error
        layer = writer.adopt(diff_id)
        entries = list(layer.entries())
        await store.discard(diff_id)
        return Unpacked(diff_id, entries)


async def stored(store: LayerStore, made: Made, *, durable: bool = True) -> Layer:
    """Unpack a layer, serve it and make it durable."""
    with ExitStack() as undo:
        writer = undo.enter_context(store.writer())
        layer = writer.adopt(await unpack(*passing(described(made)), stream(made.blob), writer, lambda _: None))
        if durable:
            writer.make_durable()
    return layer


def paths(entries: Iterable[Entry]) -> list[bytes]:
    return [entry.path for entry in entries]


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
