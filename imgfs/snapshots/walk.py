"""Walking a directory that somebody else fills: every name met through the open directory above it.

So neither a symbolic link put in the place of a directory nor a path longer than the kernel takes leads the walk
astray. Nothing recurses: a tree may be as deep as descriptors last. Names come sorted, so the order is the content's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

T = TypeVar("T")
What = TypeVar("What")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALKS = trio.CapacityLimiter(4)
"""Threads that walk whole trees: apart, because short work must not wait for them."""


@dataclass(frozen=True, slots=True)
class Found:
    """One file of any kind. `path` is below the top, b"" for itself. `place` can be opened until the walk goes on."""

    path: bytes
    status: os.stat_result
    place: bytes

    @property
    def name(self) -> bytes:
        """The last component."""
        return self.path.rpartition(b"/")[2]


@dataclass(frozen=True, slots=True)
class _Level:
    descriptor: int
    members: Iterator[Found]


Order = Callable[[Found], tuple[bool, bytes]]


def _by_name(found: Found) -> tuple[bool, bytes]:
    return False, found.path


def walk(top: Path, order: Order = _by_name) -> Iterator[Found]:
    """Everything below `top` and itself, parents first, the members of a directory in `order`; blocks.

    What vanishes between listing and looking is left out. Raises OSError. Closing the iterator closes its descriptors.
    """
    levels: list[_Level] = []
    try:
        levels.append(_enter(os.open(top, _DIRECTORY), b"", order))
        here = levels[0].descriptor
        yield Found(b"", os.fstat(here), _place(here, b"."))
        while levels:
            found = next(levels[-1].members, None)
            if found is None:
                os.close(levels.pop().descriptor)
                continue
            yield found
            if stat.S_ISDIR(found.status.st_mode):
                below = _open(found, levels[-1].descriptor)
                if below is not None:
                    levels.append(_enter(below, found.path + b"/", order))
    finally:
        for level in levels:
            os.close(level.descriptor)


def _enter(descriptor: int, prefix: bytes, order: Order) -> _Level:
    try:
        members = [found for name in os.listdir(descriptor) if (found := _look(descriptor, prefix, os.fsencode(name)))]
    except BaseException:
        os.close(descriptor)
        raise
    return _Level(descriptor, iter(sorted(members, key=order)))


def _look(descriptor: int, prefix: bytes, name: bytes) -> Found | None:
    try:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Found(prefix + name, status, _place(descriptor, name))


def _open(found: Found, above: int) -> int | None:
    try:
        return os.open(found.name, _DIRECTORY, dir_fd=above)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _place(descriptor: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (descriptor, name)


async def run_walk(function: Callable[[What], T], what: What, *, only_looks: bool = False) -> T:
    """Run what takes as long as a tree is large, in a thread.

    Cancellation waits for it to end, unless it `only_looks`: then its thread goes on for nobody.
    """
    return await trio.to_thread.run_sync(function, what, limiter=_WALKS, abandon_on_cancel=only_looks)
