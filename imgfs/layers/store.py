"""The layer store: uncompressed tars and their indexes in `layers/<algorithm>/<hex of diff ID>/{tar,index}`.

The store owns the set of stored layers and their files. A layer is served as soon as it is verified. It becomes durable
and gets its final name later, in the background (LayerWriter.make_durable).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.disk.calls import HOST
from imgfs.disk.durable import aside_name, fsync_path, open_directory, publish, temporary_name
from imgfs.errors import Busy, NotFound, from_os, opened_read_only
from imgfs.layers import files
from imgfs.layers.layer import Layer
from imgfs.layers.writer import LayerWriter
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest

_log = logging.getLogger("imgfs.layers")


class LayerStore:
    """All layers of one state directory."""

    def __init__(self, root: Path) -> None:
        """Open or create the store below `root`, and remove the temporary files of a crash."""
        self._root = root / "layers"
        self._layers: dict[Digest, Layer] = {}
        self._lost: set[Digest] = set()
        self._loss = trio.Event()
        self._is_read_only = False
        self._placing = threading.Lock()
        """Held while a layer gets or loses its final name."""
        for algorithm in HEX_LENGTH:
            shelf = self._root / algorithm
            self._is_read_only = not open_directory(shelf)
            if self._is_read_only and not shelf.is_dir():
                continue
            if not self._is_read_only:
                fsync_path(shelf)  # a rename of a killed daemon is durable from now on
            for entry in os.scandir(shelf):
                diff_id = Digest(f"{algorithm}:{entry.name}")
                if is_digest(diff_id) and os.path.isfile(f"{entry.path}/{files.TAR}"):
                    self._open(diff_id, Path(entry.path))

    def _open(self, diff_id: Digest, directory: Path) -> None:
        """Serve a stored layer. A tar whose size has changed is damaged, and its layer is set aside."""
        size = files.recorded_size(directory)
        found = (directory / files.TAR).stat().st_size
        if size is not None and size != found:
            files.set_aside(directory)
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
        """Return the layer. Raises NotFound if it is not stored."""
        try:
            return self._layers[diff_id]
        except KeyError:
            raise NotFound(f"layer {diff_id}: is not stored here") from None

    def writer(self) -> LayerWriter:
        """Return a writer for a layer whose diff ID is not known yet. Raises ReadOnly."""
        if self._is_read_only:
            raise opened_read_only("layer")
        return LayerWriter(self, self._root / "sha256" / temporary_name())

    def adopt(self, layer: Layer) -> Layer:
        """Serve `layer`, unless an equal one is stored already. Returns the layer that is served."""
        return self._layers.setdefault(layer.diff_id, layer)

    async def discard(self, diff_id: Digest) -> None:
        """Remove a layer and close its descriptor. The layer must have no readers, because their reads would fail."""
        if layer := self._layers.pop(diff_id, None):
            layer.close()
            await run_disk(files.remove, layer.tar.parent)

    def is_served(self, layer: Layer) -> bool:
        """Return whether this Layer object is the one that is served."""
        return self._layers.get(layer.diff_id) is layer

    def is_durable(self, layer: Layer) -> bool:
        """Return whether the layer is durable under its final name."""
        return layer.tar.parent == self._final(layer.diff_id)

    async def evict(self, diff_id: Digest) -> None:
        """Remove a layer. Holders of its Layer can still read it. It stops being served before the first await.

        An equal layer that is adopted meanwhile stays. Raises NotFound, Busy until the layer is durable, StorageFailed
        and ReadOnly. After an error the layer is served as before, if its files still exist.
        """
        await self._withdraw(diff_id, self._take_away)

    async def set_aside(self, diff_id: Digest) -> None:
        """Rename a damaged layer, durably, and stop serving it. Holders of its Layer can still read it.

        Raises NotFound, Busy until the layer is durable, StorageFailed.
        """
        await self._withdraw(diff_id, self._put_aside)

    async def _withdraw(self, diff_id: Digest, put_away: Callable[[Digest], None]) -> None:
        """Stop serving the layer, then call `put_away` in a thread."""
        layer = self.get(diff_id)
        if not self.is_durable(layer):
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
            HOST.rename(final, gone)
        files.remove(gone)

    def _final(self, diff_id: Digest) -> Path:
        return self._root / diff_id.algorithm / diff_id.hex

    def lose(self, layer: Layer) -> None:
        """Stop serving a Layer whose sync failed, and report it through `wait_lost`. Its writer removes the files."""
        if self.is_served(layer):
            del self._layers[layer.diff_id]
            self._lost.add(layer.diff_id)
            self._loss.set()

    async def wait_lost(self) -> set[Digest]:
        """Wait for lost layers and return the diff IDs of those lost since the last call. For a single waiter."""
        await self._loss.wait()
        lost, self._lost, self._loss = self._lost, set(), trio.Event()
        return lost

    def place(self, layer: Layer) -> None:
        """Give a synced layer its final name. An equal layer that has the name already stays, unless it has no tar.

        Blocks: call it in a thread.
        """
        final = self._final(layer.diff_id)
        with self._placing:
            if not (final / files.TAR).exists():
                files.remove(final)
                self._publish(layer.tar.parent, final)
                layer.moved(final)

    @staticmethod
    def _publish(directory: Path, final: Path) -> None:
        """Rename durably. After an error the directory gets its old name again, so that the caller can retry."""
        try:
            publish(directory, final)
        except OSError:
            with suppress(OSError):
                HOST.rename(final, directory)
            raise

    def close(self) -> None:
        """Close every descriptor."""
        for layer in self._layers.values():
            layer.close()
