"""One pass from compressed stream to stored layer, each byte touched once.

bytes -> blob digest -> inflate -> diff ID -> header walk -> sparse tar. Nothing of it is served before both digests and
the walk are through.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from imgfs.aio.pipeline import Piece, run_pipeline
from imgfs.aio.threads import run_cpu
from imgfs.errors import Malformed, TooLarge, Unsupported, VerificationFailed
from imgfs.layers.compression import open_decompressor
from imgfs.layers.entry import Entry
from imgfs.layers.index import encode_index
from imgfs.layers.store import LayerWriter
from imgfs.layers.tar import TarWalk
from imgfs.oci.descriptor import Descriptor, layer_compression
from imgfs.oci.digest import Digest

INFLATED_MAX = 64 << 30
_PIECE = 512 << 10


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a pass proved: the diff ID of the tar, its entries in order, and the index file that keeps them."""

    diff_id: Digest
    entries: list[Entry]
    index: bytes


async def unpack(
    descriptor: Descriptor, stream: AsyncIterable[bytes], writer: LayerWriter, moved: Callable[[int], None]
) -> Unpacked:
    """Pass `stream`, the bytes of the blob `descriptor`, into `writer`.

    `moved` is told the number of compressed bytes of each piece. Raises VerificationFailed, Malformed, TooLarge,
    Unsupported, NoSpace, StorageFailed, and whatever `stream` raises; then nothing of the writer may be served.
    Cancellation waits for the piece in work.
    """
    prove, inflate, absorb = _Prove(descriptor), _Inflate(descriptor), _Absorb(writer)
    await run_pipeline(_coalesce(stream, moved), prove, inflate, absorb)
    prove.close()
    inflate.close()
    entries = await run_cpu(absorb.close)
    return Unpacked(Digest.from_hash(absorb.hash), entries, await run_cpu(encode_index, entries))


class _Prove:
    """First stage: what the descriptor promises of the blob. A stage of its own, because inflating is the longest."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._hash = descriptor.digest.new_hash()
        self._size = 0

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        self._hash.update(piece)
        self._size += len(piece)
        yield piece

    def close(self) -> None:
        """Raise VerificationFailed unless the bytes are those of the descriptor."""
        digest, size = self._descriptor.digest, self._descriptor.size
        if self._size != size:
            raise VerificationFailed(f"layer {digest}: got {self._size} bytes, expected {size}")
        if self._hash.hexdigest() != digest.hex:
            raise VerificationFailed(f"layer {digest}: the bytes have digest {Digest.from_hash(self._hash)}")


class _Inflate:
    """Second stage: undo the compression.

    Bytes that do not inflate may be a broken layer or a lying registry, and only the digest of the whole tells which.
    So the first fault is kept until the rest went by, and told by `close`, after the digest's.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self._decompressor = open_decompressor(layer_compression(descriptor.media_type))
        self._fault: Malformed | None = None

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        if self._fault is None:
            try:
                yield from self._decompressor.feed(piece)
            except Malformed as fault:
                self._fault = fault

    def close(self) -> None:
        """Raise the fault that was kept, or that the stream ends too early."""
        if self._fault is not None:
            raise self._fault
        self._decompressor.close()


class _Absorb:
    """Last stage: compute the diff ID, walk the headers, keep the tar. A fault is kept for `close`, as above."""

    def __init__(self, writer: LayerWriter) -> None:
        self.hash = hashlib.sha256()
        self.walk = TarWalk()
        self._writer = writer
        self._fault: Malformed | Unsupported | None = None

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        if self._fault is None:
            try:
                self._absorb(piece)
            except (Malformed, Unsupported) as fault:
                self._fault = fault
        return iter(())

    def close(self) -> list[Entry]:
        """The entries; raises the fault that was kept, or that the tar ends too early."""
        if self._fault is not None:
            raise self._fault
        return self.walk.close()

    def _absorb(self, piece: Piece) -> None:
        if self._writer.offset + len(piece) > INFLATED_MAX:
            raise TooLarge(f"layer: inflates to more than {INFLATED_MAX} bytes")
        self.hash.update(piece)
        self.walk.feed(piece)
        self._writer.append(piece)


async def _coalesce(stream: AsyncIterable[bytes], moved: Callable[[int], None]) -> AsyncIterator[Piece]:
    """Join network pieces: a trip to a thread costs the same for 64 KiB as for 512 KiB."""
    waiting: list[bytes] = []
    size = 0
    async for piece in stream:
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE:
            moved(size)
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        moved(size)
        yield b"".join(waiting)
