"""The index of a stored layer: its entries as one checked file, so that nothing walks a tar twice.

Derived from the tar and rebuilt from it whenever it does not read back (layers/layer.py). It is written and read in
batches, because a layer of a megabyte can have a million entries, and its pass and its reader hold a few of them.

Layout: the size of the tar, a magic line, two counts (`Weight`), the BLAKE2b-256 of the batches and the counts, the
batches: each its length in four bytes and a MessagePack list of entries.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from imgfs.errors import StorageFailed
from imgfs.layers.entry import Entry

MAGIC = b"imgfs layer index 2\n"
"""How an index begins, behind the size of the tar."""
SIZE_BYTES = 8
"""Bytes before the index in its file, in every version: the size of the tar, so that a start sees a cut one at once."""
BATCH = 2048
"""Entries that are encoded at once, and that are in memory at once when they are read."""

_ANY_MAGIC = re.compile(rb"imgfs layer index [0-9]\n")
_COUNTS = struct.Struct(">QQ")
_SUM = 32
_HEAD = SIZE_BYTES + len(MAGIC) + _COUNTS.size + _SUM
_LENGTH = struct.Struct(">I")
_PIECE = 1 << 20
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Entry])


@dataclass(frozen=True, slots=True)
class Weight:
    """What a merged tree of a layer's entries may take: `nodes` at most, and `extra` bytes of names, attributes and
    sparse maps beyond what a header block holds."""

    nodes: int
    extra: int


class Index:
    """An open index: iterating yields its entries in tar order, as often as it is done; each time blocks.

    It is closed when nobody has it any more.
    """

    def __init__(self, file: int, weight: Weight) -> None:
        """`file` becomes this object's own."""
        self._file = file
        self.weight = weight
        weakref.finalize(self, os.close, file)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open and check an index; all of it is read. Raises StorageFailed where it is torn, damaged or of another
        version, OSError."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _, counts, total = _read_head(file)
            if _sum(file, counts) != total:
                raise StorageFailed("layer index: is damaged or of another version")
        except BaseException:
            os.close(file)
            raise
        return cls(file, Weight(*_COUNTS.unpack(counts)))

    def __iter__(self) -> Iterator[Entry]:
        """Raises StorageFailed where what follows a sound sum is no index."""
        at = _HEAD
        while head := os.pread(self._file, _LENGTH.size, at):
            try:
                (length,) = _LENGTH.unpack(head)
                batch = _decoder.decode(os.pread(self._file, length, at + _LENGTH.size))
            except (struct.error, msgspec.MsgspecError) as error:
                raise StorageFailed(f"layer index: {error}") from None
            yield from batch
            at += _LENGTH.size + length

    @property
    def tar_size(self) -> int:
        """Bytes of the tar."""
        return int.from_bytes(os.pread(self._file, SIZE_BYTES, 0))


class IndexWriter:
    """Writes an index into `file`, which stays the caller's. The methods block and raise OSError."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._at = _HEAD
        self._running = hashlib.blake2b(digest_size=_SUM)

    def append(self, entries: list[Entry]) -> None:
        """Write further entries, in tar order. What was written is taken out of the list, so that what is left after an
        error can be tried again."""
        while entries:
            payload = _encoder.encode(entries[:BATCH])
            batch = _LENGTH.pack(len(payload)) + payload
            _write_all(self._file, batch, self._at)
            self._at += len(batch)
            self._running.update(batch)
            del entries[:BATCH]

    def seal(self, tar_size: int, weight: Weight) -> None:
        """Write the head: from now on it reads back."""
        counts = _COUNTS.pack(weight.nodes, weight.extra)
        self._running.update(counts)
        head = tar_size.to_bytes(SIZE_BYTES) + MAGIC + counts + self._running.digest()
        _write_all(self._file, head, 0)


def stated_size(head: bytes) -> int | None:
    """The size of the tar by the first bytes of an index of any version, unchecked; None where they are of none."""
    return int.from_bytes(head[:SIZE_BYTES]) if _ANY_MAGIC.match(head, SIZE_BYTES) else None


def is_outdated(head: bytes) -> bool:
    """Whether these are the first bytes of an index of another version: no damage, and replaced once it is read."""
    return stated_size(head) is not None and not head.startswith(MAGIC, SIZE_BYTES)


def stored_weight(path: Path) -> Weight | None:
    """What the head of an index says, unchecked; None where there is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return Weight(*_COUNTS.unpack(_read_head(file)[1]))
    except (OSError, StorageFailed):
        return None
    finally:
        os.close(file)


def _read_head(file: int) -> tuple[bytes, bytes, bytes]:
    """The size of the tar, the counts and the sum."""
    head = os.pread(file, _HEAD, 0)
    magic_end = SIZE_BYTES + len(MAGIC)
    if len(head) != _HEAD or head[SIZE_BYTES:magic_end] != MAGIC:
        raise StorageFailed("layer index: is damaged or of another version")
    return head[:SIZE_BYTES], head[magic_end:-_SUM], head[-_SUM:]


def _sum(file: int, counts: bytes) -> bytes:
    running, at = hashlib.blake2b(digest_size=_SUM), _HEAD
    while piece := os.pread(file, _PIECE, at):
        running.update(piece)
        at += len(piece)
    running.update(counts)
    return running.digest()


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
