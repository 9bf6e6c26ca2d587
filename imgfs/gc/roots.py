"""Where the mark begins: what must stay, or only the smaller part of it that may not even be evicted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import trio

from imgfs.gc.labels import references
from imgfs.gc.marker import Marker
from imgfs.gc.stores import Stores
from imgfs.leases.resource import Resource, content, snapshot
from imgfs.oci.digest import Digest, is_digest

T = TypeVar("T")

_TURN = 500
"""Roots added before others get their turn."""


class Roots:
    """Adds roots to a mark; asked again, what is new since.

    `holds` are leases, pins, what is in use and what is labelled a root; the others are names and users' snapshots.
    Labels are read once a cycle: a client that refers to what is old already leases it first.
    """

    def __init__(self, stores: Stores, marker: Marker, pinned: set[Resource], *, holds_only: bool) -> None:
        """`pinned` is what operations held at any time in this cycle (Pins.noting)."""
        self._pinned = pinned
        self._stores = stores
        self._marker = marker
        self._holds_only = holds_only
        self._seen: tuple[int, ...] = ()
        self._labelled = 0

    def is_new(self) -> bool:
        """Whether there may be a root that was not added; costs nothing."""
        return self._seen != self._stores.version()

    @property
    def durable(self) -> int:
        """How many roots are on disk: those that the next daemon would find too."""
        held = sum(1 for _ in self._stores.leases.resources())
        return len(self._stores.names) + len(self._stores.snapshots) + held + self._labelled

    async def add(self) -> None:
        """Add what there is now; what comes while this waits makes `is_new` true."""
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
        """Back references are told to the marker on the way."""
        found = references(self._stores.labels(digest))
        self._marker.refer_back(digest, found.back)
        return found.is_root

    async def _add_snapshots(self) -> None:
        """The chains below users' snapshots, and what labels of these name."""
        async for info in _in_turns(self._stores.snapshots):
            if info.parent is not None and is_digest(info.parent):
                self._marker.chain(Digest(info.parent))
            for resource in references(self._of_snapshot(info.id)).forward:
                self._marker.resource(resource)

    def _of_snapshot(self, id: str) -> dict[str, bytes]:
        found = self._stores.snapshots.find(id)  # it may have gone while others had their turn
        return self._stores.snapshots.labels(id) if found is not None else {}


async def _in_turns(things: Iterable[T]) -> AsyncIterator[T]:
    for position, thing in enumerate(list(things)):
        if position % _TURN == _TURN - 1:
            await trio.lowlevel.checkpoint()
        yield thing
