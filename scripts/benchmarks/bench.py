"""What every experiment works with: images, registry, rooms, results.

Owns the order of runs and the handling of failures; measures nothing by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .contestants import Contestant
from .disks import Rooms
from .images import Catalogue, Image
from .processes import Failed
from .results import Results, Row
from .servers import Registry

FAULTS = (Failed, OSError, ValueError, KeyError)
"""Failures of a contestant: it fails, vanishes or answers nonsense. Any other error ends the benchmark."""

TRIES_WITHOUT_SUCCESS = 2
T = TypeVar("T")


@dataclass
class Bench:
    """One run of the benchmark."""

    work: Path
    imgfs: Path
    repeats: int
    only_images: tuple[str, ...]
    full: bool
    catalogue: Catalogue
    registry: Registry
    rooms: Rooms
    disk: Rooms
    """Rooms on the disk of `work`, for measurements that would be misleading in RAM."""
    results: Results = field(default_factory=Results)

    def images(self, labels: Iterable[str]) -> list[Image]:
        """The images, made and pushed."""
        images = [self.catalogue.image(label) for label in labels]
        for image in images:
            self.registry.push(image)
        return images

    def wants(self, label: str) -> bool:
        """Return whether the image is among those of --images. Without --images every image is."""
        return not self.only_images or label.partition(":")[0] in self.only_images

    def rounds(self, contestants: Sequence[type[Contestant]]) -> Iterator[type[Contestant]]:
        """Yield every contestant once a round. Each round begins with another contestant."""
        for number in range(self.repeats):
            turn = number % len(contestants)
            yield from (*contestants[turn:], *contestants[:turn])

    @contextmanager
    def entered(self, kind: type[Contestant]) -> Iterator[Contestant]:
        """Enter a contestant in a fresh room, with its daemon running."""
        with self.rooms.room() as room, kind(room, self) as contestant:
            yield contestant


@contextmanager
def recorded(*rows: Row) -> Iterator[None]:
    """Record a contestant's failure in its rows instead of ending the benchmark."""
    try:
        yield
    except FAULTS as error:
        message = str(error) or repr(error)
        say(f"  failed: {message.strip()[-300:]}")
        for row in rows:
            row.failures.append(message)


def given_up(row: Row) -> bool:
    """Return whether a contestant failed often and never succeeded, so that another try is a waste of time."""
    return not row.samples and len(row.failures) >= TRIES_WITHOUT_SUCCESS


def timed(action: Callable[[], T]) -> tuple[float, T]:
    begin = time.perf_counter()
    value = action()
    return time.perf_counter() - begin, value


def say(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)
