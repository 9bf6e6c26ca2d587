"""The index of a stored layer: the entries in one checksummed file, so that each tar is walked only once.

The index is derived from the tar. A reader that finds it damaged rebuilds it (layer.py). It is written and read in
batches, because a layer of one megabyte can have a million entries, and memory must hold only a few thousand.

Layout: the size of the tar; a magic line; two counts (`Weight`); the BLAKE2b-256 of the batches and the counts; the
batches, each a length of four bytes and a MessagePack list of entries.
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
"""The magic line, which follows the size of the tar."""
SIZE_BYTES = 8
"""Bytes of the size of the tar.

Every version has it first, so that a starting daemon detects a truncated tar at once.
"""
BATCH = 2048
"""Entries in one batch: the number that is in memory at a time."""

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
    """An upper bound of the memory that a layer's entries take in a merged tree.

    `nodes` is a number of nodes. `extra` is the bytes of names, attributes and sparse maps that do not fit a header
    block.
    """

    nodes: int
    extra: int


class LayerIndex:
    """An open index. Each iteration yields the entries in tar order, and blocks. Closed with its last reference."""

    def __init__(self, file: int, weight: Weight) -> None:
        """Take ownership of the descriptor `file`."""
        self._file = file
        self.weight = weight
        weakref.finalize(self, os.close, file)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an index, read all of it and check it.

        Raises StorageFailed if it is torn, damaged or of another version, and OSError.
        """
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
        """Raises StorageFailed if the checksum is right but a batch does not decode."""
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
        """The size of the tar in bytes, as it was when the index was written."""
        return int.from_bytes(os.pread(self._file, SIZE_BYTES, 0))


class IndexWriter:
    """Writes an index into the descriptor `file`, which the caller owns. The methods block and raise OSError."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._at = _HEAD
        self._running = hashlib.blake2b(digest_size=_SUM)

    def append(self, entries: list[Entry]) -> None:
        """Write the next entries, in tar order.

        Written entries are removed from the list. After an error the caller retries with the entries that are left.
        """
        while entries:
            payload = _encoder.encode(entries[:BATCH])
            batch = _LENGTH.pack(len(payload)) + payload
            _write_all(self._file, batch, self._at)
            self._at += len(batch)
            self._running.update(batch)
            del entries[:BATCH]

    def seal(self, tar_size: int, weight: Weight) -> None:
        """Write the head, which makes the index complete."""
        counts = _COUNTS.pack(weight.nodes, weight.extra)
        self._running.update(counts)
        head = tar_size.to_bytes(SIZE_BYTES) + MAGIC + counts + self._running.digest()
        _write_all(self._file, head, 0)


def stated_size(head: bytes) -> int | None:
    """Return the size of the tar from the unchecked head of an index of any version; None if `head` is not one."""
    return int.from_bytes(head[:SIZE_BYTES]) if _ANY_MAGIC.match(head, SIZE_BYTES) else None


def is_outdated(head: bytes) -> bool:
    """Return whether `head` belongs to an index of another version.

    That is not damage; the first reader replaces it.
    """
    return stated_size(head) is not None and not head.startswith(MAGIC, SIZE_BYTES)


def stored_weight(path: Path) -> Weight | None:
    """Return the weight in the unchecked head of an index; None if there is no readable head."""
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
    """Return the size of the tar, the counts and the checksum. Raises StorageFailed."""
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
