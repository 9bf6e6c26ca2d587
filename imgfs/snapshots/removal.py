"""Directories of snapshots on their way out: after their rows, over a crash, at the next start.

Knows what a directory without a row is. A removal leaves its row until the directory is gone, a killed prepare leaves
no changes; what has changes all the same is left by a lost database, is somebody's work, and is never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import trio

from imgfs.errors import ImgfsError
from imgfs.snapshots.shelf import Shelf, remove_tree

T = TypeVar("T")
What = TypeVar("What")

_log = logging.getLogger("imgfs.snapshots")

_WALKS = trio.CapacityLimiter(4)
"""Threads that sync or walk whole trees: apart, because short work must not wait for them."""


async def run_walk(function: Callable[[What], T], what: What, *, only_looks: bool = False) -> T:
    """Run what takes as long as a tree is large, in a thread.

    Cancellation waits for it to end, unless it `only_looks`: then its thread goes on for nobody.
    """
    return await trio.to_thread.run_sync(function, what, limiter=_WALKS, abandon_on_cancel=only_looks)


class Removals:
    """Takes directories away; what fails is logged and left for the next start."""

    def __init__(self, shelf: Shelf, kept: Iterable[int], removed: Iterable[int]) -> None:
        """See what lies on the shelf besides the `kept` numbers. `removed` are those whose rows say so."""
        self._shelf = shelf
        directories = shelf.numbers()
        self._garbage = shelf.garbage()
        self.settled = {number for number in removed if number not in directories}
        """Numbers whose directories are gone for good, so that their rows may go."""
        self._waiting = sorted(directories.intersection(removed))
        self.strays: list[Path] = []
        self._judge(sorted(directories.difference(kept, removed)))

    async def sweep(self) -> None:
        """Take away what was found at the start."""
        while self._waiting:
            await self.clear(self._waiting.pop())
        while self._garbage:
            await run_walk(_delete, self._garbage.pop())

    async def clear(self, number: int) -> None:
        """Take away the directory of a snapshot that nobody can find any more."""
        if await run_walk(self._clear, number):
            self.settled.add(number)

    def _clear(self, number: int) -> bool:
        """Whether nobody finds the directory any more, not even the next start; it is removed then, or is garbage."""
        try:
            garbage = self._shelf.set_aside(number)
        except ImgfsError as error:
            _log.warning("snapshot directory is removed at the next start", extra={"reason": error.message})
            return False
        if garbage is not None:
            _delete(garbage)
        return True

    def _judge(self, unknown: list[int]) -> None:
        for number in unknown:
            if self._shelf.is_empty(number):
                self._waiting.append(number)
            else:
                self.strays.append(self._shelf.upper(number))
                _log.warning("snapshot directory without a row is left alone", extra={"path": str(self.strays[-1])})


def _delete(garbage: Path) -> None:
    try:
        remove_tree(garbage)
    except OSError as error:
        told = {"path": str(garbage), "reason": str(error)}
        _log.warning("snapshot directory is removed at the next start", extra=told)
