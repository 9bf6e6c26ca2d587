"""Removal of snapshot directories: after their rows, or at the next start after a crash.

A removal keeps its row, marked as removed, until the directory is gone. A killed prepare leaves a directory without a
row and without changes, which is removed. A directory without a row and with changes comes from a lost database. It
holds a user's work and is never removed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import ImgfsError
from imgfs.snapshots.directories import SnapshotDirectories, remove_tree
from imgfs.snapshots.walk import run_walk

_log = logging.getLogger("imgfs.snapshots")

SHORT = 2000
"""Number of entries that are removed in some hundredths of a second."""


class Removals:
    """Removes directories. A failure is logged, and the next start removes the rest."""

    def __init__(self, directories: SnapshotDirectories, kept: Iterable[int], removed: Iterable[int]) -> None:
        """Find the directories besides those of `kept`. `removed` are the numbers that the database calls removed."""
        self._directories = directories
        numbers = directories.numbers()
        self._garbage = directories.garbage()
        self.settled = {number for number in removed if number not in numbers}
        """Numbers whose directories are gone durably, so that their rows can be deleted."""
        self._waiting = sorted(numbers.intersection(removed))
        self._left = deque[Path]()
        """Trees that are too large for the remover to wait for."""
        self._more = trio.Event()
        self._is_followed = False
        self.strays: list[Path] = []
        self._judge(sorted(numbers.difference(kept, removed)))

    async def sweep(self) -> None:
        """Remove what was found at the start."""
        while self._waiting:
            await self.clear(self._waiting.pop())
        while self._garbage:
            await run_walk(_delete_until_cancelled, self._garbage.pop())

    async def follow(self) -> None:
        """Remove large trees in the background, forever. The next start removes what is left at the end."""
        self._is_followed = True
        try:
            while True:
                while self._left:
                    await run_walk(_delete_until_cancelled, self._left[0])
                    self._left.popleft()
                self._more = trio.Event()
                await self._more.wait()
        finally:
            self._is_followed = False

    async def clear(self, number: int) -> None:
        """Remove the directory of a snapshot that lookups no longer find.

        A small tree is removed in one call of a thread. The rest of a large tree is left to `follow`, or removed here
        if `follow` does not run.
        """
        try:
            rest = await run_disk(self._begin, number)
        except ImgfsError as error:
            _log.warning("snapshot directory is removed at the next start", extra={"reason": error.message})
            return
        self.settled.add(number)
        if rest is None:
            return
        if self._is_followed:
            self._left.append(rest)
            self._more.set()
        else:
            await run_walk(_delete, rest)

    def _begin(self, number: int) -> Path | None:
        """Rename a directory durably and remove it if it is small; return it if there is more to remove."""
        garbage = self._directories.set_aside(number)
        if garbage is not None:
            try:
                _delete(garbage, _Few().take)
            except _Enough:
                return garbage
        return None

    def _judge(self, unknown: list[int]) -> None:
        for number in unknown:
            if self._directories.is_empty(number):
                self._waiting.append(number)
            else:
                self.strays.append(self._directories.upper(number))
                _log.warning("snapshot directory without a row is left alone", extra={"path": str(self.strays[-1])})


class _Enough(Exception):
    """Raised when a tree is large: `follow` removes the rest."""


class _Few:
    """Counts entries up to the number that is removed in some hundredths of a second."""

    def __init__(self) -> None:
        self._left = SHORT

    def take(self) -> None:
        """Count one. Raises _Enough."""
        if not self._left:
            raise _Enough
        self._left -= 1


def _delete_until_cancelled(garbage: Path) -> None:
    _delete(garbage, trio.from_thread.check_cancelled)


def _delete(garbage: Path, each: Callable[[], object] = lambda: None) -> None:
    try:
        remove_tree(garbage, each)
    except OSError as error:
        told = {"path": str(garbage), "reason": str(error)}
        _log.warning("snapshot directory is removed at the next start", extra=told)
