"""Walking a directory to which other processes write: each name is opened relative to its open parent directory.

So a symbolic link that replaces a directory cannot lead the walk away, and paths may be longer than the kernel allows.
Nothing recurses; the depth is limited by descriptors. Names are sorted, so the order depends on the content only.
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
"""Threads that walk whole trees. They are separate, because short work must not wait for them."""


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
    """Yield `top` and everything below it, parents first, the members of a directory in `order`. Blocks.

    Files that vanish during the walk are left out. Raises OSError. Closing the iterator closes its descriptors.
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
    """Run work on a whole tree in a thread.

    Cancellation waits for its end, unless it `only_looks`: then the thread is abandoned.
    """
    return await trio.to_thread.run_sync(function, what, limiter=_WALKS, abandon_on_cancel=only_looks)
