"""The layer store: `layers/<algorithm>/<hex of diff ID>/{tar,index}`, uncompressed tars, served from as they lie.

Owns which layers are here, their bytes and their indexes. A layer is served as soon as it is verified; its way to a
name that survives a power cut (`settle`) goes on behind the reader.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.content.durable import aside_name, fsync_path, open_directory, publish, temporary_name
from imgfs.errors import Busy, NotFound, begun_read_only, from_os
from imgfs.layers.entry import Entry
from imgfs.layers.index import MAGIC, SIZE_BYTES
from imgfs.layers.layer import Layer
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest

_log = logging.getLogger("imgfs.layers")

_HOLE = 512 << 10
"""Bytes of the smallest run of zeros that becomes a hole. The kernel reads ahead to a hole and not beyond it: a tar of
160 MB with a hundred holes of 64 KiB and more came from a cold disk at nine tenths of the rate of one without."""
_ZEROS = bytes(_HOLE)


class LayerStore:
    """All layers of one state directory."""

    def __init__(self, root: Path) -> None:
        """Open the store below `root`, create it if needed, and sweep what a crash left behind."""
        self._root = root / "layers"
        self._layers: dict[Digest, Layer] = {}
        self._lost: set[Digest] = set()
        self._loss = trio.Event()
        self._is_read_only = False
        self._placing = threading.Lock()
        """Held while a final name is given or taken away."""
        for algorithm in HEX_LENGTH:
            shelf = self._root / algorithm
            self._is_read_only = not open_directory(shelf)
            if self._is_read_only and not shelf.is_dir():
                continue
            if not self._is_read_only:
                fsync_path(shelf)  # a name that a killed daemon gave counts from now on
            for entry in os.scandir(shelf):
                diff_id = Digest(f"{algorithm}:{entry.name}")
                if is_digest(diff_id) and os.path.isfile(f"{entry.path}/tar"):
                    self._open(diff_id, Path(entry.path))

    def _open(self, diff_id: Digest, directory: Path) -> None:
        """Serve a stored layer, unless its tar is shorter or longer than it was: such a one is set aside."""
        size = _recorded_size(directory)
        found = (directory / "tar").stat().st_size
        if size is not None and size != found:
            _set_aside(directory)
            told = {"diff_id": diff_id, "expected": size, "found": found}
            _log.warning("damaged layer set aside; it is fetched again when it is read", extra=told)
        else:
            self._layers[diff_id] = Layer(diff_id, directory)

    def __contains__(self, diff_id: Digest) -> bool:
        return diff_id in self._layers

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(list(self._layers.values()))

    def get(self, diff_id: Digest) -> Layer:
        """The layer; raises NotFound if it is not here."""
        try:
            return self._layers[diff_id]
        except KeyError:
            raise NotFound(f"layer {diff_id}: is not stored here") from None

    def writer(self) -> LayerWriter:
        """Begin to write a layer whose diff ID its bytes will tell. Raises ReadOnly."""
        if self._is_read_only:
            raise begun_read_only("layer")
        return LayerWriter(self, self._root / "sha256" / temporary_name())

    def adopt(self, layer: Layer) -> Layer:
        """Serve `layer` from now on, unless an equal one is here already; returns the one that is served."""
        return self._layers.setdefault(layer.diff_id, layer)

    async def discard(self, diff_id: Digest) -> None:
        """Remove a layer here and now. Readers of its descriptor get errors, so nobody may be using it."""
        if layer := self._layers.pop(diff_id, None):
            layer.close()
            await run_disk(_remove, layer.tar.parent)

    def is_served(self, layer: Layer) -> bool:
        """Whether this very Layer is the one that is served."""
        return self._layers.get(layer.diff_id) is layer

    def is_settled(self, layer: Layer) -> bool:
        """Whether the layer has its final name."""
        return layer.tar.parent == self._final(layer.diff_id)

    async def evict(self, diff_id: Digest) -> None:
        """Remove a layer; whoever holds its Layer reads on. At the first await, it is no longer served.

        If an equal one came here meanwhile, that one stays. Raises NotFound, Busy while it settles, StorageFailed and
        ReadOnly; then it is served as before, if it is still there.
        """
        await self._withdraw(diff_id, self._take_away)

    async def set_aside(self, diff_id: Digest) -> None:
        """Keep a damaged layer under another name, durably; whoever holds its Layer reads on. It is no longer served.

        Raises NotFound, Busy while it settles, StorageFailed.
        """
        await self._withdraw(diff_id, self._put_aside)

    async def _withdraw(self, diff_id: Digest, put_away: Callable[[Digest], None]) -> None:
        """Serve the layer no more, and have `put_away` do the rest in a thread."""
        layer = self.get(diff_id)
        if not self.is_settled(layer):
            raise Busy(f"layer {diff_id}: is being stored; try again")
        del self._layers[diff_id]
        try:
            await run_disk(put_away, diff_id)
        except OSError as error:
            if layer.tar.exists():
                self._layers.setdefault(diff_id, layer)
            raise from_os(error, f"layer {diff_id}") from None

    def _put_aside(self, diff_id: Digest) -> None:
        final = self._final(diff_id)
        with self._placing:
            if diff_id not in self._layers and final.exists():
                publish(final, aside_name(final))

    def _take_away(self, diff_id: Digest) -> None:
        final = self._final(diff_id)
        gone = final.with_name(temporary_name())
        with self._placing:
            if diff_id in self._layers or not final.exists():
                return
            final.rename(gone)
        _remove(gone)

    def _final(self, diff_id: Digest) -> Path:
        return self._root / diff_id.algorithm / diff_id.hex

    def lose(self, layer: Layer) -> None:
        """The disk did not take the bytes of this very Layer: it is served no more, and `wait_lost` tells of it.

        Its files are its writer's to remove.
        """
        if self.is_served(layer):
            del self._layers[layer.diff_id]
            self._lost.add(layer.diff_id)
            self._loss.set()

    async def wait_lost(self) -> set[Digest]:
        """The diff IDs of what was lost since this was asked before, as soon as there is any; for one who asks."""
        await self._loss.wait()
        lost, self._lost, self._loss = self._lost, set(), trio.Event()
        return lost

    def place(self, layer: Layer) -> None:
        """Give a synced layer its final name, in a thread; an equal one that is there already stays, unless damaged."""
        final = self._final(layer.diff_id)
        with self._placing:
            if not (final / "tar").exists():
                _remove(final)
                self._publish(layer.tar.parent, final)
                layer.moved(final)

    @staticmethod
    def _publish(directory: Path, final: Path) -> None:
        """What could not be made durable gets its old name again, so that it can be tried again."""
        try:
            publish(directory, final)
        except OSError:
            with suppress(OSError):
                final.rename(directory)
            raise

    def close(self) -> None:
        """Close every descriptor."""
        for layer in self._layers.values():
            layer.close()


class LayerWriter:
    """One layer on its way in. Use as a context; leaving it before `adopt` removes every trace.

    Runs of zeros become holes, so a bomb costs time and not disk. The methods block: call them in threads.
    """

    def __init__(self, store: LayerStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._file: int | None = None
        self._layer: Layer | None = None
        self.offset = 0
        self.is_lost = False
        """Whether a sync of the adopted tar failed: nobody knows which bytes are on disk, so it is not to be served."""

    def __enter__(self) -> LayerWriter:
        try:
            self._directory.mkdir(mode=0o700)
            self._file = os.open(self._directory / "tar", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        except OSError as error:
            raise from_os(error, "layer") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            if self.is_lost:
                self._take_back(self._file)
            os.close(self._file)
            self._file = None
        if self._layer is None or self.is_lost:
            with suppress(OSError):  # what the disk does not let go, the next start sweeps
                _remove(self._directory)

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

    def adopt(self, diff_id: Digest, entries: list[Entry]) -> Layer:
        """The bytes are verified: serve them from now on. `settle` makes them durable."""
        assert self._file is not None
        os.ftruncate(self._file, self.offset)
        made = Layer(diff_id, self._directory, entries)
        made.descriptor()  # now, because settling renames the path that it opens
        layer = self._store.adopt(made)
        if layer is made:
            self._layer = made
            # While it settles, the tar's name changes; so whoever reads by then has the descriptor.
            made.descriptor()
        else:
            made.close()
        return layer

    def settle(self, index: bytes) -> None:
        """Make the adopted layer survive a power cut, with its `index` file (layers/index.py).

        Raises NoSpace or StorageFailed; it is served all the same, and can be tried again unless it `is_lost`.
        """
        if self._layer is None or self._file is None or self._store.is_settled(self._layer):
            return
        try:
            self.is_lost = True  # until it is synced
            os.fsync(self._file)
            self.is_lost = False
            kept = self._directory / "index"
            kept.write_bytes(self.offset.to_bytes(SIZE_BYTES) + index)
            fsync_path(kept)
            fsync_path(self._directory)
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


def _recorded_size(directory: Path) -> int | None:
    """The size that the tar had when it was stored; None where the index is not whole either (it is rebuilt)."""
    if not (directory / "index").is_file():  # nor a pipe, which would never be read
        return None
    try:
        with (directory / "index").open("rb") as file:
            head = file.read(SIZE_BYTES + len(MAGIC))
    except OSError:
        return None
    return int.from_bytes(head[:SIZE_BYTES]) if head[SIZE_BYTES:] == MAGIC else None


def _set_aside(directory: Path) -> None:
    try:
        directory.rename(aside_name(directory))
    except OSError as error:
        if error.errno != errno.EROFS:  # then it is left where it is, and not served either
            raise


def _remove(directory: Path) -> None:
    for name in ("tar", "index"):
        (directory / name).unlink(missing_ok=True)
    if directory.exists():
        directory.rmdir()
