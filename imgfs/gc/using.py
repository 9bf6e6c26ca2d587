"""What is in use right now: chains that are mounted or a container's, what is on its way here, blobs that are open."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

from imgfs.aio.threads import run_disk
from imgfs.content.store import ContentStore
from imgfs.execution.containers import Containers
from imgfs.leases.resource import Resource, content, layer, snapshot
from imgfs.oci.digest import Digest, is_digest
from imgfs.rootfs.rootfs import Rootfs
from imgfs.transfer.layers import Layers
from imgfs.transfer.transfers import Transfers

_DESCRIPTORS = "/proc/self/fd"


class Using:
    """Asks the rooms that know, and the kernel for open files: so nobody has to keep books about handles."""

    def __init__(
        self, stored: ContentStore, transfers: Transfers, fetcher: Layers, rootfs: Rootfs, containers: Containers
    ) -> None:
        self._stored = stored
        self._transfers = transfers
        self._fetcher = fetcher
        self._rootfs = rootfs
        self._containers = containers

    async def __call__(self) -> Set[Resource]:
        """All of it, as pins would name it."""
        return {
            *map(content, await run_disk(open_blobs, self._stored)),
            *(content(transfer.digest) for transfer in self._transfers),
            *map(layer, self._fetcher.settling()),
            *map(snapshot, self._rootfs.shown()),
            *map(snapshot, await self._containers.holdings.chains()),
        }


def open_blobs(stored: ContentStore) -> list[Digest]:
    """The stored blobs that this process has open; blocks."""
    found: list[Digest] = []
    for name in os.listdir(_DESCRIPTORS):
        try:
            path = Path(os.readlink(f"{_DESCRIPTORS}/{name}"))
        except OSError:
            continue  # closed since, listing's own descriptor among them
        text = f"{path.parent.parent.name}:{path.name}"
        if is_digest(text) and stored.path(Digest(text)) == path:
            found.append(Digest(text))
    return found
