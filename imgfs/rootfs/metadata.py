"""Metadata images: `views/<hex>.erofs`, the merged tree of each chain as an EROFS whose file data lie in the tars.

The images are derived data. One that a crash tore or an older imgfs wrote fails its checksum or version check, is
removed, and is built again from the layers.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.disk.calls import HOST
from imgfs.disk.durable import open_directory, write_file
from imgfs.erofs.inode import DataDevice
from imgfs.erofs.superblock import is_outdated, is_whole
from imgfs.erofs.writer import build
from imgfs.errors import from_os
from imgfs.oci.digest import Digest, is_digest
from imgfs.snapshots.views import View

_log = logging.getLogger("imgfs.rootfs")
_SUFFIX = ".erofs"


class MetadataImages:
    """All metadata images of one state directory."""

    def __init__(self, state: Path) -> None:
        """Open the directory, create it if needed, and remove what a crash left."""
        self._root = state / "views"
        open_directory(self._root)
        self._checked: set[Digest] = set()

    def path(self, chain_id: Digest) -> Path:
        """Return the path of a chain's image, whether or not the image exists."""
        return self._root / f"{chain_id.hex}{_SUFFIX}"

    def stored(self) -> list[tuple[Digest, int]]:
        """Return the chains that have an image, and the bytes of each on disk. Blocks. Raises StorageFailed."""
        try:
            found = [(entry.name, entry.stat()) for entry in os.scandir(self._root) if entry.name.endswith(_SUFFIX)]
        except FileNotFoundError:  # never made: the state directory is read-only
            return []
        except OSError as error:
            raise from_os(error, str(self._root)) from None
        chains = ((f"sha256:{name.removesuffix(_SUFFIX)}", status) for name, status in found)
        return [(Digest(chain), status.st_blocks * 512) for chain, status in chains if is_digest(chain)]

    async def find(self, chain_id: Digest) -> Path | None:
        """Return the image if it exists and is whole. All its bytes are checked once in the daemon's life."""
        path = self.path(chain_id)
        if chain_id not in self._checked:
            if not await run_disk(_check, path):
                return None
            self._checked.add(chain_id)
        return path if path.exists() else None

    async def make(self, view: View) -> Path:
        """Build the image of `view` and store it durably.

        Raises Unsupported and TooLarge for trees that EROFS cannot hold, NoSpace, StorageFailed.
        """
        chain_id = view.snapshot.chain_id
        image = await run_cpu(_build, view)
        path = self.path(chain_id)
        try:
            await run_disk(write_file, path, image)
        except OSError as error:
            raise from_os(error, str(path)) from None
        self._checked.add(chain_id)
        return path

    async def remove(self, chain_id: Digest) -> None:
        """Remove an image that the kernel refused, so that it is built again."""
        self._checked.discard(chain_id)
        await run_disk(_unlink, self.path(chain_id))


def _build(view: View) -> bytearray:
    return build(view.tree.root, _devices(view), view.data.read_layer)


def _devices(view: View) -> Sequence[DataDevice]:
    return [DataDevice(layer.size(), layer.diff_id.hex.encode()) for layer in view.layers]


def _check(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            if is_whole(mapped):
                return True
            reason = "of an older version" if is_outdated(mapped) else "torn"
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = str(error)
    _log.warning("metadata image is built again", extra={"path": str(path), "reason": reason})
    with suppress(OSError):  # the next build replaces it, or fails for the same reason
        HOST.unlink(path)
    return False


def _unlink(path: Path) -> None:
    try:
        with suppress(FileNotFoundError):
            HOST.unlink(path)
    except OSError as error:
        raise from_os(error, str(path)) from None
