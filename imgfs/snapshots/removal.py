"""Directories of snapshots on their way out: after their rows, over a crash, at the next start.

Knows what a directory without a row is. A removal leaves its row until the directory is gone, a killed prepare leaves
no changes; what has changes all the same is left by a lost database, is somebody's work, and is never touched.
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
"""Entries that are removed in a few hundredths of a second."""


class Removals:
    """Takes directories away; what fails is logged and left for the next start."""

    def __init__(self, directories: SnapshotDirectories, kept: Iterable[int], removed: Iterable[int]) -> None:
        """Find the directories besides those of `kept`. `removed` are the numbers that the database calls removed."""
        self._directories = directories
        numbers = directories.numbers()
        self._garbage = directories.garbage()
        self.settled = {number for number in removed if number not in numbers}
        """Numbers whose directories are gone for good, so that their rows may go."""
        self._waiting = sorted(numbers.intersection(removed))
        self._left = deque[Path]()
        """What is too large for who removes it to wait for."""
        self._more = trio.Event()
        self._is_followed = False
        self.strays: list[Path] = []
        self._judge(sorted(numbers.difference(kept, removed)))

    async def sweep(self) -> None:
        """Take away what was found at the start."""
        while self._waiting:
            await self.clear(self._waiting.pop())
        while self._garbage:
            await run_walk(_delete_until_cancelled, self._garbage.pop())

    async def follow(self) -> None:
        """For ever: remove what is large behind those who give it up. What is left at the end, the next start finds."""
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
        """Take away the directory of a snapshot that nobody can find any more.

        All of it in one trip to a thread, unless it is large: the rest is left to `follow`, or waited for where nobody
        follows.
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
        """Set a directory aside, durably, and remove what can be removed soon; returns it if there is more."""
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
    """The rest is for somebody else."""


class _Few:
    """As many entries as are removed in a few hundredths of a second."""

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
