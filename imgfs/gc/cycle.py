"""One cycle: a mark that is kept true while the sweep goes on, and removals that never overtake a new root.

The promise: between the last look at the roots and the moment in which a thing is no longer served, nothing else runs.
So whoever names, leases or pins a thing while it is served has it, and whoever comes later finds it absent and fetches
it again. A change of the roots costs one more walk of what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from imgfs.errors import Busy, ImgfsError, NotFound
from imgfs.gc.marker import Marker
from imgfs.gc.report import Item, Report
from imgfs.gc.roots import Roots
from imgfs.gc.stores import Stores
from imgfs.leases.resource import Resource

_log = logging.getLogger("imgfs.gc")

_LOOKS = 64
"""Removals between two looks at whether something came that was reached before it was here: a look takes longer."""


class Cycle:
    """A mark and the report of what was done by it."""

    def __init__(self, stores: Stores, report: Report, pinned: set[Resource], *, holds_only: bool) -> None:
        self.marker = Marker(stores)
        self.roots = Roots(stores, self.marker, pinned, holds_only=holds_only)
        self.report = report
        self._removals = 0

    async def mark(self) -> None:
        """Walk until everything that the roots reach now is marked; returns at once where nothing is new."""
        while self.roots.is_new() or self.marker.has_work():
            self.marker.take_news()
            await self.roots.add()
            await self.marker.run()

    async def remove(self, item: Item, is_garbage: Callable[[], bool], remove: Callable[[], Awaitable[object]]) -> bool:
        """Remove `item` if it is garbage by then; tell whether it went (or would, in a dry run).

        `remove` takes it from who might be served before it first waits. What fails is told by the report.
        """
        await trio.lowlevel.checkpoint()
        self._removals += 1
        if self.roots.is_new() or not self._removals % _LOOKS:
            await self.mark()
        if not is_garbage():
            return False
        try:
            if not self.report.dry_run:
                with trio.CancelScope(shield=True):
                    await remove()
        except (NotFound, Busy):
            return False  # somebody was faster, or it is coming in right now
        except ImgfsError as error:
            _log.warning("garbage stays", extra={"kind": item.kind, "id": item.id, "reason": error.message})
            self.report.failed.append(Item(item.kind, item.id, item.bytes, error.message))
            return False
        self.report.removed.append(item)
        return True
