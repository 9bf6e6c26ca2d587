"""A cached summary of every container, for garbage collection and for the daemon's start.

container.json does not change after the start, so summaries are kept in memory and are read again only if the directory
of containers changed. With 100,000 containers a question costs one stat.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

import msgspec
import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import from_os, too_many_open
from imgfs.execution.records.records import ContainerRecords
from imgfs.oci.digest import Digest, is_digest

_SETTLED = 1.0
"""Age in seconds from which a directory's mtime shows all changes. Clocks of filesystems are coarse."""


class ContainerSummary(msgspec.Struct, frozen=True, gc=False):
    """The part of container.json that questions about all containers need. There may be 100,000 of these."""

    chain: str
    """The chain ID below its snapshot."""
    created: str
    remove: bool
    """Whether the container is deleted as soon as it has ended (--rm)."""


class _Known(msgspec.Struct, frozen=True, gc=False):
    """A summary, and the inode and mtime of the file that it was read from."""

    inode: int
    written: int
    held: ContainerSummary


class Holdings:
    """Answers questions about all containers. Every call may raise StorageFailed."""

    def __init__(self, records: ContainerRecords) -> None:
        self._records = records
        self._known: dict[str, _Known] = {}
        self._seen = 0
        """The directory's mtime when `_known` was read; 0 if the directory may have changed since."""
        self._looking = trio.Lock()

    async def chains(self) -> set[Digest]:
        """Return the chain IDs below the snapshots of all containers."""
        chains = {one.chain for one in (await self.containers()).values()}
        return {Digest(chain) for chain in chains if is_digest(chain)}

    async def containers(self) -> Mapping[str, ContainerSummary]:
        """Return the summary of every container by ID. Unreadable records are left out."""
        async with self._looking:
            self._known, self._seen = await run_disk(self._look)
            return {id: one.held for id, one in self._known.items()}

    def _look(self) -> tuple[dict[str, _Known], int]:
        try:
            changed = os.stat(self._records.directory).st_mtime_ns
        except FileNotFoundError:
            return {}, 0
        except OSError as error:
            raise from_os(error, "containers") from None
        if changed == self._seen:
            return self._known, changed
        is_settled = time.time_ns() - changed > _SETTLED * 1e9
        found = {id: one for id in self._records.ids() if (one := self._read(id)) is not None}
        return found, changed if is_settled else 0

    def _read(self, id: str) -> _Known | None:
        path, known = self._records.find(id).path / "container.json", self._known.get(id)
        try:
            status = os.stat(path)
            if known is not None and (known.inode, known.written) == (status.st_ino, status.st_mtime_ns):
                return known
            held = msgspec.json.decode(path.read_bytes(), type=ContainerSummary)
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            if isinstance(error, OSError) and too_many_open(error.errno):
                raise from_os(error, f"container {id}") from None  # skipping it would make its layers garbage
            return None  # deleted meanwhile, or damaged; a reader of it gets the error
        return _Known(
            status.st_ino, status.st_mtime_ns, ContainerSummary(sys.intern(held.chain), held.created, held.remove)
        )
