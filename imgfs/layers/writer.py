"""Writes a new layer: the tar with holes and its index. The layer is then adopted (served) and made durable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.disk.calls import HOST
from imgfs.errors import from_os
from imgfs.layers import files
from imgfs.layers.entry import Entry
from imgfs.layers.index import IndexWriter, LayerIndex, Weight
from imgfs.layers.layer import Layer
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.layers.store import LayerStore

_HOLE = 512 << 10
"""Bytes of the smallest run of zeros that becomes a hole. The kernel's read-ahead stops at a hole: a tar of 160 MB with
a hundred holes of 64 KiB and more was read from a cold disk at nine tenths of the rate of a tar without holes."""
_ZEROS = bytes(_HOLE)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_WEIGHTLESS = Weight(0, 0)


class LayerWriter:
    """The writer of one layer. Use it as a context manager; leaving it before `adopt` removes all files.

    Runs of zeros become holes, so a decompression bomb costs time but no disk space. The methods block: call them in
    threads.
    """

    def __init__(self, store: LayerStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._file: int | None = None
        self._index_file: int | None = None
        self._index: IndexWriter | None = None
        self._sealed: LayerIndex | None = None
        self._layer: Layer | None = None
        self.offset = 0
        self.is_lost = False
        """Whether a sync of the adopted tar failed.

        The bytes on disk are unknown then, so the layer must not be served.
        """

    def __enter__(self) -> LayerWriter:
        try:
            self._directory.mkdir(mode=0o700)
            self._file = os.open(self._directory / files.TAR, _NEW, 0o400)
            self._index_file = os.open(self._directory / files.INDEX, _NEW, 0o600)
            self._index = IndexWriter(self._index_file)
        except OSError as error:
            self.__exit__()
            raise from_os(error, "layer") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            if self.is_lost:
                self._take_back(self._file)
            os.close(self._file)
            self._file = None
        if self._index_file is not None and self._sealed is None:
            os.close(self._index_file)
        self._index_file = self._sealed = None
        if self._layer is None or self.is_lost:
            with suppress(OSError):  # the next start removes what stays
                files.remove(self._directory)

    @staticmethod
    def _take_back(file: int) -> None:
        """Truncate a tar whose sync failed, so that its readers get an error.

        The page cache has the right bytes only until the kernel drops them; later reads return the bytes on disk.
        """
        with suppress(OSError):
            HOST.truncate(file, 0)

    def append(self, piece: bytes | bytearray | memoryview) -> None:
        """Write the next piece of the tar. Raises NoSpace or StorageFailed."""
        assert self._file is not None
        view = memoryview(piece)
        # bytes, because memoryviews compare item by item and hold the GIL.
        searched = bytes(piece) if isinstance(piece, memoryview) else piece
        try:
            for start, end in _runs(searched):
                _write_all(self._file, view[start:end], self.offset + start)
        except OSError as error:
            raise from_os(error, "layer") from None
        self.offset += len(view)

    def keep(self, entries: list[Entry]) -> None:
        """Write the next entries of the tar and remove them from the list. Raises NoSpace or StorageFailed.

        After an error the caller retries with the entries that are left.
        """
        assert self._index is not None
        try:
            self._index.append(entries)
        except OSError as error:
            raise from_os(error, "layer") from None

    def seal(self, weight: Weight = _WEIGHTLESS) -> None:
        """Complete the tar and the index after the last piece. Raises NoSpace or StorageFailed."""
        assert self._file is not None
        assert self._index is not None
        assert self._index_file is not None
        try:
            HOST.truncate(self._file, self.offset)
            self._index.seal(self.offset, weight)
        except OSError as error:
            raise from_os(error, "layer") from None
        self._sealed = LayerIndex(self._index_file, weight)

    def adopt(self, diff_id: Digest) -> Layer:
        """Serve the verified and sealed layer from now on. `settle` makes it durable."""
        made = Layer(diff_id, self._directory, self._sealed)
        made.descriptor()  # opened now, because `settle` renames its path
        layer = self._store.adopt(made)
        if layer is made:
            self._layer = made
        else:
            made.close()
        return layer

    def make_durable(self) -> None:
        """Make the adopted layer and its index durable.

        Raises NoSpace or StorageFailed. The layer is still served then, and the caller may retry unless it `is_lost`.
        """
        if self._layer is None or self._file is None or self._store.is_durable(self._layer):
            return
        try:
            self.is_lost = True  # until fsync succeeds
            os.fsync(self._file)
            self.is_lost = False
            files.sync_index(self._directory)
            self._store.place(self._layer)
        except OSError as error:
            raise from_os(error, f"layer {self._layer.diff_id}") from None


def _runs(piece: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield the runs between blocks of zeros, as long as possible, because each write takes the GIL once."""
    begin, size = 0, len(piece)
    for start in range(0, size - _HOLE + 1, _HOLE):
        if piece.startswith(_ZEROS, start):
            if begin < start:
                yield begin, start
            begin = start + _HOLE
    if begin < size:
        yield begin, size


def _write_all(file: int, block: memoryview, offset: int) -> None:
    while block:
        written = os.pwrite(file, block, offset)
        block, offset = block[written:], offset + written
