"""What each container was made of, as one value: for whoever asks about all of them at once.

That is written once for each, so it is kept in memory, and looked for again only where the directory of containers
changed: among 100,000 the question costs one stat.
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
"""Seconds after which a directory's mtime tells every change of it: clocks of filesystems tick coarsely."""


class ContainerSummary(msgspec.Struct, frozen=True, gc=False):
    """Of a container what counts when the others are looked at too; there may be 100,000."""

    chain: str
    """Below its snapshot."""
    created: str
    remove: bool
    """Whether it is deleted as soon as it has ended."""


class _Known(msgspec.Struct, frozen=True, gc=False):
    """One of them, and the identity of the file that says so."""

    inode: int
    written: int
    held: ContainerSummary


class Holdings:
    """Asked by garbage collection, and once at the start. Every call may raise StorageFailed."""

    def __init__(self, records: ContainerRecords) -> None:
        self._records = records
        self._known: dict[str, _Known] = {}
        self._seen = 0
        """The mtime of the directory that `_known` is of; 0 where it may have changed since."""
        self._looking = trio.Lock()

    async def chains(self) -> set[Digest]:
        """The chain IDs below the snapshots of all containers."""
        chains = {one.chain for one in (await self.containers()).values()}
        return {Digest(chain) for chain in chains if is_digest(chain)}

    async def containers(self) -> Mapping[str, ContainerSummary]:
        """What each container was made of; one whose record does not read is left out."""
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
                raise from_os(error, f"container {id}") from None  # or what it stands on were garbage
            return None  # gone meanwhile, or damaged: told to whoever looks at it
        return _Known(
            status.st_ino, status.st_mtime_ns, ContainerSummary(sys.intern(held.chain), held.created, held.remove)
        )
