"""Unpacks a layer in one pass from compressed stream to stored layer. Each byte is read once.

bytes -> blob digest (-> copy) -> inflate -> diff ID -> header walk -> sparse tar. The layer is served only after both
digests and the walk have succeeded. The copy keeps the compressed bytes, so that the next pass continues where an
interrupted one stopped. It costs one write and no extra hashing, because the pass hashes the bytes anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import trio

from imgfs.aio.pipeline import Piece, run_pipeline
from imgfs.aio.threads import run_disk
from imgfs.content.ingests.downloads import LayerCopy
from imgfs.content.running_digest import RunningDigest
from imgfs.errors import ImgfsError, Malformed, NoSpace, TooLarge, Unsupported, VerificationFailed
from imgfs.layers.compression import Decompressor, Stored
from imgfs.layers.entry import Entry
from imgfs.layers.tar import TarWalk
from imgfs.layers.writer import LayerWriter
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest

T = TypeVar("T")

INFLATED_MAX = 64 << 30
_PIECE = 512 << 10
_SECONDS = 1.0
"""Limit of the time that pieces of a slow network are held back. Held bytes are not in the copy yet."""


async def unpack(
    descriptor: Descriptor,
    decompressor: Decompressor,
    stream: AsyncIterable[bytes],
    writer: LayerWriter,
    moved: Callable[[int], None],
    copy: LayerCopy | None = None,
) -> Digest:
    """Pass `stream`, the bytes of the blob `descriptor`, through `decompressor` into `writer`, and seal the writer.

    Returns the diff ID. Memory holds the pieces in flight and the entries of one piece. Calls `moved` with the number
    of compressed bytes as soon as they arrive. On return and after an error of `stream`, `copy` holds all bytes that
    arrived, unless its disk is full; the caller closes it.

    Raises VerificationFailed, Malformed, TooLarge, Unsupported, NoSpace, StorageFailed, and what `stream` raises. After
    an error the caller must not serve the layer. Cancellation waits for the current piece.
    """
    prove, inflate = _Prove(descriptor, copy), _Inflate(descriptor, decompressor)
    absorb = _Absorb(writer, partial(_make_room, copy, inflate), _known_diff_id(descriptor, decompressor))
    await run_pipeline(_coalesce(stream, moved), prove, inflate, absorb)
    prove.close()
    inflate.close()
    await run_disk(absorb.close)
    return absorb.diff_id


async def unpack_whole(
    descriptor: Descriptor, decompressor: Decompressor, blob: Sequence[bytes], writer: LayerWriter
) -> Digest:
    """Unpack a blob whose pieces are all in memory, in one call to a thread.

    Passing pieces between threads costs more than unpacking a small layer. The digest is verified before anything is
    inflated. Raises as `unpack`. Cancellation waits for the current piece, of at most 1 MiB of tar.
    """
    work = partial(_pass_whole, descriptor, decompressor, blob, writer)
    return await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1))


def _pass_whole(
    descriptor: Descriptor, decompressor: Decompressor, blob: Sequence[bytes], writer: LayerWriter
) -> Digest:
    prove, inflate = _Prove(descriptor, None), _Inflate(descriptor, decompressor)
    absorb = _Absorb(writer, lambda _: False, _known_diff_id(descriptor, decompressor))
    for piece in blob:
        for _ in prove(piece):
            trio.from_thread.check_cancelled()
    prove.close()
    for piece in blob:
        for made in inflate(piece):
            trio.from_thread.check_cancelled()
            absorb(made)
    inflate.close()
    absorb.close()
    return absorb.diff_id


def _known_diff_id(descriptor: Descriptor, decompressor: Decompressor) -> Digest | None:
    """Return the digest of an uncompressed blob, which is also the diff ID; None if the diff ID must be computed."""
    is_tar = isinstance(decompressor, Stored) and descriptor.digest.algorithm == "sha256"
    return descriptor.digest if is_tar else None


class _Prove:
    """First stage: hash and copy the blob.

    It is separate from inflating, the slowest step, so that both run in parallel.
    """

    def __init__(self, descriptor: Descriptor, copy: LayerCopy | None) -> None:
        self._descriptor = descriptor
        self._running = RunningDigest.start(descriptor.digest.algorithm)
        self._copy = copy

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        self._running = self._running.after(piece)
        yield piece  # before the copy is written, because the next stage is the slowest
        if self._copy is not None:
            self._copy.keep(piece, self._running)

    def close(self) -> None:
        """Raise VerificationFailed unless size and digest are those of the descriptor."""
        digest, size = self._descriptor.digest, self._descriptor.size
        if self._running.position != size:
            raise VerificationFailed(f"layer {digest}: got {self._running.position} bytes, expected {size}")
        if self._running.digest != digest:
            raise VerificationFailed(f"layer {digest}: the bytes have digest {self._running.digest}")


class _Inflate:
    """Second stage: decompress the blob.

    Bytes that do not inflate are a broken layer or wrong bytes of the registry. Only the digest of the whole blob tells
    which. So the first fault is kept until all bytes have passed, and `close` raises it after the digest is verified.
    """

    def __init__(self, descriptor: Descriptor, decompressor: Decompressor) -> None:
        self._decompressor = decompressor
        self._fault: Malformed | None = None
        self._size = descriptor.size
        self._taken = 0
        self._made = 0
        self._total = 0
        """The estimated size of the tar, if the rest has the compression ratio of the first part."""

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        before = self._total
        self._taken += len(piece)
        if self._fault is None:
            try:
                for made in self._decompressor.feed(piece):
                    self._made += len(made)
                    # The output of this piece is incomplete, so the new estimate may be too low. Use the larger.
                    self._total = max(before, self._estimate())
                    yield made
            except Malformed as fault:
                self._fault = fault
        self._total = self._estimate()

    def _estimate(self) -> int:
        return self._made * self._size // max(1, self._taken)

    def rest(self, offset: int) -> int | None:
        """Return the estimated bytes of tar after the first `offset`; None if nothing was inflated yet.

        Other threads may call this.
        """
        return max(0, self._total - offset) if self._total else None

    def close(self) -> None:
        """Raise the kept fault, or Malformed if the stream is truncated."""
        if self._fault is not None:
            raise self._fault
        self._decompressor.close()


class _Absorb:
    """Last stage: compute the diff ID, walk the headers, write tar and index.

    A fault is kept for `close`, as in _Inflate.
    """

    def __init__(self, writer: LayerWriter, make_room: Callable[[int], bool], known: Digest | None) -> None:
        """`make_room` is called when the disk is full and returns whether to retry.

        A `known` diff ID is not computed.
        """
        self._hash = hashlib.sha256()
        self._known = known
        self.walk = TarWalk()
        self._writer = writer
        self._make_room = make_room
        self._fault: Malformed | Unsupported | None = None

    @property
    def diff_id(self) -> Digest:
        """The digest of the tar."""
        return self._known or Digest.from_hash(self._hash)

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        if self._fault is None:
            try:
                self._absorb(piece)
            except (Malformed, Unsupported) as fault:
                self._fault = fault
        return iter(())

    def close(self) -> None:
        """Seal the writer. Raises the kept fault, or Malformed if the tar is truncated."""
        if self._fault is not None:
            raise self._fault
        self._keep(self.walk.close())
        self._writer.seal(self.walk.weight)

    def _absorb(self, piece: Piece) -> None:
        if self._writer.offset + len(piece) > INFLATED_MAX:
            raise TooLarge(f"layer: inflates to more than {INFLATED_MAX} bytes")
        if self._known is None:
            self._hash.update(piece)
        self.walk.feed(piece)
        self._with_room(self._writer.append, piece)
        self._keep(self.walk.take())

    def _keep(self, entries: list[Entry]) -> None:
        if entries:
            self._with_room(self._writer.keep, entries)

    def _with_room(self, write: Callable[[T], None], what: T) -> None:
        try:
            write(what)
        except NoSpace:
            if not self._make_room(self._writer.offset):
                raise
            write(what)


def _make_room(copy: LayerCopy | None, inflate: _Inflate, offset: int) -> bool:
    """Handle a disk that is full after `offset` bytes of tar: drop the copy if its space is enough for the rest.

    Otherwise the copy stays: a retry continues from it when there is space again.
    """
    rest = inflate.rest(offset) if copy is not None else None
    return copy is not None and rest is not None and copy.give_up(rest)


async def _coalesce(stream: AsyncIterable[bytes], moved: Callable[[int], None]) -> AsyncIterator[Piece]:
    """Join network pieces, because a call to a thread costs the same for 64 KiB as for 512 KiB."""
    waiting: list[bytes] = []
    size, since = 0, trio.current_time()
    failure: ImgfsError | None = None
    try:
        async for piece in stream:
            moved(len(piece))
            waiting.append(piece)
            size += len(piece)
            if size >= _PIECE or trio.current_time() >= since + _SECONDS:
                yield b"".join(waiting)
                waiting, size, since = [], 0, trio.current_time()
    except ImgfsError as error:
        failure = error  # raised after the bytes that arrived before it
    if waiting:
        yield b"".join(waiting)
    if failure is not None:
        raise failure
