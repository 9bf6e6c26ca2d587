"""A layer on its way to the disk: the tar as it comes, with holes, and its index; then served; then durable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.errors import from_os
from imgfs.layers import files
from imgfs.layers.entry import Entry
from imgfs.layers.index import Index, IndexWriter, Weight
from imgfs.layers.layer import Layer
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.layers.store import LayerStore

_HOLE = 512 << 10
"""Bytes of the smallest run of zeros that becomes a hole. The kernel reads ahead to a hole and not beyond it: a tar of
160 MB with a hundred holes of 64 KiB and more came from a cold disk at nine tenths of the rate of one without."""
_ZEROS = bytes(_HOLE)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_WEIGHTLESS = Weight(0, 0)


class LayerWriter:
    """One layer on its way in. Use as a context; leaving it before `adopt` removes every trace.

    Runs of zeros become holes, so a bomb costs time and not disk. The methods block: call them in threads.
    """

    def __init__(self, store: LayerStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._file: int | None = None
        self._index_file: int | None = None
        self._index: IndexWriter | None = None
        self._sealed: Index | None = None
        self._layer: Layer | None = None
        self.offset = 0
        self.is_lost = False
        """Whether a sync of the adopted tar failed: nobody knows which bytes are on disk, so it is not to be served."""

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
            with suppress(OSError):  # what the disk does not let go, the next start sweeps
                files.remove(self._directory)

    @staticmethod
    def _take_back(file: int) -> None:
        """Readers that have it open get an error from now on: memory has the right bytes until it lets go of them, and
        then what the disk has in their place."""
        with suppress(OSError):
            os.ftruncate(file, 0)

    def append(self, piece: bytes | bytearray | memoryview) -> None:
        """Write the next piece of the tar. Raises NoSpace or StorageFailed."""
        assert self._file is not None
        view = memoryview(piece)
        # Compared as bytes: memoryviews compare number by number, and hold the GIL meanwhile.
        searched = bytes(piece) if isinstance(piece, memoryview) else piece
        try:
            for start, end in _runs(searched):
                _write_all(self._file, view[start:end], self.offset + start)
        except OSError as error:
            raise from_os(error, "layer") from None
        self.offset += len(view)

    def keep(self, entries: list[Entry]) -> None:
        """Write the next entries of the tar, and take what was written out of the list. Raises NoSpace, StorageFailed;
        then the rest can be tried again."""
        assert self._index is not None
        try:
            self._index.append(entries)
        except OSError as error:
            raise from_os(error, "layer") from None

    def seal(self, weight: Weight = _WEIGHTLESS) -> None:
        """All bytes and entries are here. Raises NoSpace or StorageFailed."""
        assert self._file is not None
        assert self._index is not None
        assert self._index_file is not None
        try:
            os.ftruncate(self._file, self.offset)
            self._index.seal(self.offset, weight)
        except OSError as error:
            raise from_os(error, "layer") from None
        self._sealed = Index(self._index_file, weight)

    def adopt(self, diff_id: Digest) -> Layer:
        """The bytes are verified and sealed: serve them from now on. `settle` makes them durable."""
        made = Layer(diff_id, self._directory, self._sealed)
        made.descriptor()  # now, because settling renames the path that it opens
        layer = self._store.adopt(made)
        if layer is made:
            self._layer = made
        else:
            made.close()
        return layer

    def settle(self) -> None:
        """Make the adopted layer survive a power cut, with its index.

        Raises NoSpace or StorageFailed; it is served all the same, and can be tried again unless it `is_lost`.
        """
        if self._layer is None or self._file is None or self._store.is_settled(self._layer):
            return
        try:
            self.is_lost = True  # until it is synced
            os.fsync(self._file)
            self.is_lost = False
            files.sync_index(self._directory)
            self._store.place(self._layer)
        except OSError as error:
            raise from_os(error, f"layer {self._layer.diff_id}") from None


def _runs(piece: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """All but the blocks of zeros, in runs as long as can be: a write for each block would cost a turn at the GIL."""
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
