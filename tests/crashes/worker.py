"""A worker: a user that works at random, from a seed, on one kind of object, and can look at what is left."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from tests.crashes.ledger import Fact, Ledger
from tests.mount.scene import Scene

GONE = (errno.ENOTCONN, errno.ECONNABORTED)
"""The errnos of a mount's system calls once its daemon is dead."""


class Worker(Protocol):
    """Works on its own objects, so that no other worker changes what was promised to it."""

    ledger: Ledger

    def step(self) -> None:
        """Do one operation. Raises OSError if the daemon refuses it or is dead."""
        ...

    def look(self) -> dict[str, Fact]:
        """Return all facts about this worker's objects, without the registry."""
        ...


class Place:
    """What every worker gets: the scene, its own ledger and its own random numbers."""

    def __init__(self, scene: Scene, name: str, seed: int) -> None:
        self.scene = scene
        self.name = name
        self.chance = random.Random(f"{seed} {name}")
        self.ledger = Ledger(scene.mount.path.parent / f"journal-{name}")
        self._made = 0

    @property
    def tree(self) -> Path:
        """The mountpoint."""
        return self.scene.mount.path

    def new(self) -> str:
        """Return a name that was not used before."""
        self._made += 1
        return f"{self.name}{self._made}"

    def draw(self, operations: Iterable[tuple[int, Callable[[], None]]]) -> None:
        """Do one of the operations, with a probability proportional to its weight."""
        weights, works = zip(*operations, strict=True)
        self.chance.choices(works, weights)[0]()


def own(names: Iterable[str], prefix: str) -> list[str]:
    """Return the names that begin with `prefix` and a number: the names of one worker."""
    return sorted(name for name in names if name.startswith(prefix) and name[len(prefix) : len(prefix) + 1].isdecimal())
