"""A stored layer: reads its tar in place, and its entries from the index. Rebuilds an index that does not read back."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from imgfs.aio.threads import read_at
from imgfs.errors import StorageFailed, VerificationFailed, from_os
from imgfs.layers import files
from imgfs.layers.header import BLOCK
from imgfs.layers.index import LayerIndex, Weight, stored_weight
from imgfs.layers.reindex import hashing, reindex, write_index
from imgfs.layers.tar import ENTRIES_LIMIT
from imgfs.oci.digest import Digest

_log = logging.getLogger("imgfs.layers")

_READ = 1 << 20


class Layer:
    """A stored layer: an uncompressed tar whose digest is `diff_id`, and its index."""

    def __init__(self, diff_id: Digest, directory: Path, index: LayerIndex | None = None) -> None:
        """`index` is given for a layer whose directory does not have its final name yet."""
        self.diff_id = diff_id
        self._directory = directory
        self._index = index
        self._weight = index.weight if index is not None else None
        self._file: int | None = None
        self._closing: weakref.finalize[..., Layer] | None = None

    @property
    def tar(self) -> Path:
        """The path of the tar. It changes once, when the layer becomes durable."""
        return self._directory / files.TAR

    def descriptor(self) -> int:
        """Return a descriptor for reading the tar, shared by all readers. Raises StorageFailed.

        The store closes it at its end. The descriptor of an evicted layer is closed with the last reference to the
        Layer.
        """
        if self._file is None:
            try:
                self._file = os.open(self.tar, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise from_os(error, f"layer {self.diff_id}") from None
            self._closing = weakref.finalize(self, os.close, self._file)
        return self._file

    def size(self) -> int:
        """Return the size of the uncompressed tar in bytes."""
        return os.fstat(self.descriptor()).st_size

    def allocated(self) -> int:
        """Return the bytes that the tar occupies on disk."""
        return os.fstat(self.descriptor()).st_blocks * 512

    async def read_at(self, offset: int, size: int) -> bytes | bytearray:
        """Return `size` bytes of the tar, fewer only at its end. Raises StorageFailed."""
        size = min(size, self.size() - offset)
        return await read_at(self.descriptor(), size, offset, f"layer {self.diff_id}") if size > 0 else b""

    def weight(self) -> Weight:
        """Return what the entries may take in a merged tree. Blocks for one read."""
        if self._weight is None:
            self._weight = stored_weight(self._directory / files.INDEX)
        # Without an index the bound is one entry for each block of the tar.
        return self._weight or Weight(min(self.size() // BLOCK, ENTRIES_LIMIT), 0)

    def entries(self) -> LayerIndex:
        """Return the entries in tar order.

        A missing or damaged index is rebuilt from the tar. Blocks. Raises StorageFailed.
        """
        if (index := self._index) is not None:
            return index
        path = self._directory / files.INDEX
        try:
            return LayerIndex.open(path)
        except (StorageFailed, FileNotFoundError) as error:
            _log.warning("layer index is rebuilt", extra={"diff_id": str(self.diff_id), "reason": str(error)})
        except OSError as error:
            raise from_os(error, f"layer {self.diff_id}") from None
        return self._rebuilt()

    def moved(self, directory: Path) -> None:
        """Record that the store gave the directory its final name."""
        self._directory = directory
        self._index = None

    def close(self) -> None:
        """Close the descriptor. Later reads through it fail."""
        if self._closing is not None:
            self._closing()
            self._file = self._closing = None

    def _rebuilt(self) -> LayerIndex:
        """Rebuild the index.

        It is stored for later callers; if the disk refuses that, it is an unnamed file in memory.
        """
        try:
            reindex(self._directory, self.diff_id, lambda _: None)
            index = LayerIndex.open(self._directory / files.INDEX)
        except VerificationFailed:
            raise self._damaged() from None
        except OSError:
            index = self._walk()
        self._weight = index.weight
        return index

    def _walk(self) -> LayerIndex:
        running, file = self.diff_id.new_hash(), os.memfd_create("imgfs-index", os.MFD_CLOEXEC)
        try:
            index = LayerIndex(file, write_index(file, hashing(self._pieces(), running)))
        except BaseException:
            os.close(file)
            raise
        if running.hexdigest() != self.diff_id.hex:
            raise self._damaged()
        return index

    def _damaged(self) -> StorageFailed:
        return StorageFailed(f"layer {self.diff_id}: the stored tar is damaged; remove it and pull again")

    def _pieces(self) -> Iterator[bytes]:
        file, offset = self.descriptor(), 0
        try:
            while piece := os.pread(file, _READ, offset):
                yield piece
                offset += len(piece)
        except OSError as error:
            raise from_os(error, f"layer {self.diff_id}") from None
