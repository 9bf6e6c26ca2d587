"""Pins: the transient leases of running operations. They exist in memory and end with the operation or the daemon.

The rule that makes them safe: an operation pins a thing *before* it asks whether the thing is stored. Garbage
collection checks `version` in the same step in which it removes a thing, so it never removes a thing that was pinned
first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from imgfs.leases.resource import Resource


class Pin:
    """The resources that one operation holds. The operation may add more as it learns what it needs."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.resources: set[Resource] = set()

    def add(self, *resources: Resource) -> None:
        """Hold these resources too, until the operation ends."""
        new = set(resources) - self.resources
        self.resources |= new
        self._pins.take(new)


class Pins:
    """All resources that running operations hold."""

    def __init__(self) -> None:
        self._held: Counter[Resource] = Counter()
        self._pins: list[Pin] = []
        self._noted: list[set[Resource]] = []
        self.version = 0
        """Changes whenever a resource is pinned that was not pinned."""

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, resource: object) -> bool:
        return resource in self._held

    def beside(self, resource: Resource) -> set[Resource]:
        """All resources of the operations that hold `resource`."""
        return {one for pin in self._pins if resource in pin.resources for one in pin.resources}

    @contextmanager
    def hold(self, *resources: Resource) -> Generator[Pin]:
        """Pin `resources` until the block ends, by return, exception or cancellation."""
        pin = Pin(self)
        pin.add(*resources)
        self._pins.append(pin)
        try:
            yield pin
        finally:
            self._pins.remove(pin)
            self._held.subtract(pin.resources)
            for resource in pin.resources:
                if not self._held[resource]:
                    del self._held[resource]

    @contextmanager
    def noting(self) -> Generator[set[Resource]]:
        """A set of the resources pinned now; it gets each one pinned during the block, and loses none."""
        noted = set(self._held)
        self._noted.append(noted)
        try:
            yield noted
        finally:
            self._noted = [one for one in self._noted if one is not noted]

    def take(self, resources: set[Resource]) -> None:
        """Count one more holder of each resource; a Pin calls this."""
        if not resources <= self._held.keys():
            self.version += 1
        self._held.update(resources)
        for noted in self._noted:
            noted |= resources
