"""Passing blobs into a layer store, as transfer/ does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.layers.compression import Decompressor
from imgfs.layers.entry import Entry
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.layers.unpack import Unpacked, unpack, unpack_whole
from imgfs.oci.descriptor import Descriptor
from imgfs.testing.build import Layer as Made
from tests.support.compressions import COMPRESSIONS


def described(made: Made, **other: object) -> Descriptor:
    """What a manifest says of a layer, or something else."""
    return replace(Descriptor(made.digest, len(made.blob), made.media_type(docker=False)), **other)


def passing(descriptor: Descriptor) -> tuple[Descriptor, Decompressor]:
    """What the pass of a layer begins with."""
    return descriptor, COMPRESSIONS.of(descriptor.media_type).open()


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def passed(store: LayerStore, descriptor: Descriptor, *pieces: bytes) -> Unpacked:
    """Unpack and throw away: while it comes, and whole; either way the outcome is the same."""
    with store.writer() as coming, store.writer() as whole:
        first = await _outcome(unpack(*passing(descriptor), stream(*pieces), coming, lambda _: None))
        second = await _outcome(unpack_whole(*passing(descriptor), pieces, whole))
    assert str(first) == str(second)
    if isinstance(first, ImgfsError):
        assert type(first) is type(second)
        raise first
    assert first == second
    return first


async def _outcome(work: Awaitable[Unpacked]) -> Unpacked | ImgfsError:
    try:
        return await work
    except ImgfsError as error:
        return error


async def stored(store: LayerStore, made: Made, *, settle: bool = True) -> Layer:
    """Unpack, serve, and make durable."""
    with ExitStack() as undo:
        writer = undo.enter_context(store.writer())
        unpacked = await unpack(*passing(described(made)), stream(made.blob), writer, lambda _: None)
        layer = writer.adopt(unpacked.diff_id, unpacked.entries)
        if settle:
            writer.settle(unpacked.index)
    return layer


def paths(entries: Iterable[Entry]) -> list[bytes]:
    return [entry.path for entry in entries]


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
