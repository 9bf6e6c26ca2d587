"""One pass from compressed stream to stored layer, each byte touched once.

bytes -> blob digest (-> copy) -> inflate -> diff ID -> header walk -> sparse tar. Nothing of it is served before both
digests and the walk are through. The copy is what a pass that breaks off leaves of the blob, for the next one to begin
with; it costs a write, as its digest is the pass's.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import trio

from imgfs.aio.pipeline import Piece, run_pipeline
from imgfs.aio.threads import run_disk
from imgfs.content.ingests.copy import Copy
from imgfs.content.running import RunningDigest
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
"""A slow network's pieces are not held back for longer: what is not passed on is in no copy either."""


async def unpack(
    descriptor: Descriptor,
    decompressor: Decompressor,
    stream: AsyncIterable[bytes],
    writer: LayerWriter,
    moved: Callable[[int], None],
    copy: Copy | None = None,
) -> Digest:
    """Pass `stream`, the bytes of the blob `descriptor`, through `decompressor` into `writer`, and seal that.

    Returns the diff ID. Memory holds the pieces in work and the entries of one, however many the layer has.

    `moved` is told of compressed bytes as soon as they come. All that came, also before an error of `stream`, is in
    `copy` then, unless its disk is full; closing it is the caller's. Raises VerificationFailed, Malformed, TooLarge,
    Unsupported, NoSpace, StorageFailed, and whatever `stream` raises; then nothing of the writer may be served.
    Cancellation waits for the piece in work.
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
    """As `unpack`, for a blob whose bytes are all here, in pieces: in one trip to a thread.

    Handing pieces from thread to thread costs more than a small layer itself. Nothing is inflated before the digest is
    proved. Cancellation waits for the piece in work, of at most 1 MiB of tar.
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
    """What the tar's digest will be once the blob's is proved: the same, where the bytes are. Else None."""
    is_tar = isinstance(decompressor, Stored) and descriptor.digest.algorithm == "sha256"
    return descriptor.digest if is_tar else None


class _Prove:
    """First stage: what the descriptor promises of the blob. A stage of its own, because inflating is the longest."""

    def __init__(self, descriptor: Descriptor, copy: Copy | None) -> None:
        self._descriptor = descriptor
        self._running = RunningDigest.start(descriptor.digest.algorithm)
        self._copy = copy

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        self._running = self._running.after(piece)
        yield piece  # before it is copied: inflating is the longest
        if self._copy is not None:
            self._copy.keep(piece, self._running)

    def close(self) -> None:
        """Raise VerificationFailed unless the bytes are those of the descriptor."""
        digest, size = self._descriptor.digest, self._descriptor.size
        if self._running.position != size:
            raise VerificationFailed(f"layer {digest}: got {self._running.position} bytes, expected {size}")
        if self._running.digest != digest:
            raise VerificationFailed(f"layer {digest}: the bytes have digest {self._running.digest}")


class _Inflate:
    """Second stage: undo the compression.

    Bytes that do not inflate may be a broken layer or a lying registry, and only the digest of the whole tells which.
    So the first fault is kept until the rest went by, and told by `close`, after the digest's.
    """

    def __init__(self, descriptor: Descriptor, decompressor: Decompressor) -> None:
        self._decompressor = decompressor
        self._fault: Malformed | None = None
        self._size = descriptor.size
        self._taken = 0
        self._made = 0
        self._total = 0
        """How long the tar will be, if the rest inflates as what came."""

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        before = self._total
        self._taken += len(piece)
        if self._fault is None:
            try:
                for made in self._decompressor.feed(piece):
                    self._made += len(made)
                    # Of a piece in work nobody knows how much of it has come out: then the larger estimate counts.
                    self._total = max(before, self._estimate())
                    yield made
            except Malformed as fault:
                self._fault = fault
        self._total = self._estimate()

    def _estimate(self) -> int:
        return self._made * self._size // max(1, self._taken)

    def rest(self, offset: int) -> int | None:
        """How much tar will follow the first `offset` bytes, by the estimate; None where nothing is known.

        May be asked in another thread.
        """
        return max(0, self._total - offset) if self._total else None

    def close(self) -> None:
        """Raise the fault that was kept, or that the stream ends too early."""
        if self._fault is not None:
            raise self._fault
        self._decompressor.close()


class _Absorb:
    """Last stage: compute the diff ID, walk the headers, keep both. A fault is kept for `close`, as above."""

    def __init__(self, writer: LayerWriter, make_room: Callable[[int], bool], known: Digest | None) -> None:
        """`make_room` is asked when the disk is full; True is worth another try. A `known` diff ID is not computed."""
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
        """Seal the writer; raises the fault that was kept, or that the tar ends too early."""
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


def _make_room(copy: Copy | None, inflate: _Inflate, offset: int) -> bool:
    """The disk is full after `offset` bytes of tar: drop the copy, if the rest will fit where it lies.

    Else it is worth more as it is, for a time when there is room.
    """
    rest = inflate.rest(offset) if copy is not None else None
    return copy is not None and rest is not None and copy.give_up(rest)


async def _coalesce(stream: AsyncIterable[bytes], moved: Callable[[int], None]) -> AsyncIterator[Piece]:
    """Join network pieces: a trip to a thread costs the same for 64 KiB as for 512 KiB."""
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
        failure = error  # after what came before it
    if waiting:
        yield b"".join(waiting)
    if failure is not None:
        raise failure
