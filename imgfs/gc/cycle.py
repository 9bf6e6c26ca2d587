"""One cycle: its roots, a mark that stays true during the sweep, and removals that never overtake a new root.

The promise: no other task runs between the last look at the roots and the moment when a thing is no longer served. So a
caller that names, leases or pins a thing while it is served keeps it, and a later caller finds it absent and fetches it
again. A change of the roots costs a walk over what is new.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from imgfs.errors import Busy, ImgfsError, NotFound
from imgfs.gc.marker import Marker, references
from imgfs.gc.report import GarbageItem, GarbageReport
from imgfs.gc.stores import GarbageStores
from imgfs.leases.resource import Resource, content, snapshot
from imgfs.oci.digest import Digest, is_digest

_log = logging.getLogger("imgfs.gc")

T = TypeVar("T")

_REMOVALS = 64
"""Removals between two looks for things that were stored after they were reached: such a look takes long."""
_ROOTS = 500
"""Roots that are added before other tasks run."""


class Roots:
    """Adds the roots to a mark; a later call adds those that are new since.

    Roots are names, users' snapshots, leases, pins, what is in use, and what is labelled as a root. With `holds_only`,
    names and snapshots are left out: what only they reach may be evicted. Labels are read once a cycle, because a
    client that is about to refer to an old thing leases it first.
    """

    def __init__(self, stores: GarbageStores, marker: Marker, pinned: set[Resource], *, holds_only: bool) -> None:
        """`pinned` are the resources that operations pinned at any time in this cycle (Pins.noting)."""
        self._pinned = pinned
        self._stores = stores
        self._marker = marker
        self._holds_only = holds_only
        self._seen: tuple[int, ...] = ()
        self._labelled = 0

    def is_new(self) -> bool:
        """Whether a root may have been added since `add`; costs nothing."""
        return self._seen != self._stores.version()

    @property
    def durable(self) -> int:
        """The number of roots on disk, which the next daemon finds too."""
        held = sum(1 for _ in self._stores.leases.resources())
        return len(self._stores.names) + len(self._stores.snapshots) + held + self._labelled

    async def add(self) -> None:
        """Add the roots of this moment. A root that is added while this waits makes `is_new` true."""
        first, self._seen = not self._seen, self._stores.version()
        if first:
            await self._add_labelled()
        if not self._holds_only:
            async for digest in _in_turns(self._stores.names.digests()):
                self._marker.image(digest)
            self._marker.names()
            await self._add_snapshots()
        for resource in (*self._stores.leases.resources(), *self._pinned, *await self._stores.in_use()):
            self._marker.resource(resource)

    async def _add_labelled(self) -> None:
        blobs = [info.digest for info in self._stores.content]
        roots = [content(one) async for one in _in_turns(blobs) if self._is_root(one)]
        chains = [chain.chain_id for chain in self._stores.graph]
        roots += [snapshot(one) async for one in _in_turns(chains) if references(self._of_snapshot(one)).is_root]
        self._labelled = len(roots)
        for resource in roots:
            self._marker.resource(resource)

    def _is_root(self, digest: Digest) -> bool:
        """Whether the blob is labelled as a root; also gives its back references to the marker."""
        found = references(self._stores.labels(digest))
        self._marker.refer_back(digest, found.back)
        return found.is_root

    async def _add_snapshots(self) -> None:
        """Add the chains below users' snapshots, and what the snapshots' labels name."""
        async for info in _in_turns(self._stores.snapshots):
            if info.parent is not None and is_digest(info.parent):
                self._marker.chain(Digest(info.parent))
            for resource in references(self._of_snapshot(info.id)).forward:
                self._marker.resource(resource)

    def _of_snapshot(self, id: str) -> dict[str, bytes]:
        found = self._stores.snapshots.find(id)  # another task may have removed it meanwhile
        return self._stores.snapshots.labels(id) if found is not None else {}


class Cycle:
    """A mark, and the report of what the sweep did by it."""

    def __init__(
        self, stores: GarbageStores, report: GarbageReport, pinned: set[Resource], *, holds_only: bool
    ) -> None:
        self.marker = Marker(stores)
        self.roots = Roots(stores, self.marker, pinned, holds_only=holds_only)
        self.report = report
        self._removals = 0

    async def mark(self) -> None:
        """Walk until everything that the roots reach now is marked; returns at once if nothing is new."""
        while self.roots.is_new() or self.marker.has_work():
            self.marker.queue_stored()
            await self.roots.add()
            await self.marker.run()

    async def remove(
        self, item: GarbageItem, is_garbage: Callable[[], bool], remove: Callable[[], Awaitable[object]]
    ) -> bool:
        """Remove `item` if it is still garbage; returns whether it was removed (or would be, in a dry run).

        `remove` must stop serving the item before its first await. A failure goes to the report.
        """
        await trio.lowlevel.checkpoint()
        self._removals += 1
        if self.roots.is_new() or not self._removals % _REMOVALS:
            await self.mark()
        if not is_garbage():
            return False
        try:
            if not self.report.dry_run:
                with trio.CancelScope(shield=True):
                    await remove()
        except (NotFound, Busy):
            return False  # another task removed it first, or is storing it right now
        except ImgfsError as error:
            _log.warning(
                "garbage could not be removed", extra={"kind": item.kind, "id": item.id, "reason": error.message}
            )
            self.report.failed.append(GarbageItem(item.kind, item.id, item.bytes, error.message))
            return False
        self.report.removed.append(item)
        return True


async def _in_turns(things: Iterable[T]) -> AsyncIterator[T]:
    for position, thing in enumerate(list(things)):
        if position % _ROOTS == _ROOTS - 1:
            await trio.lowlevel.checkpoint()
        yield thing
