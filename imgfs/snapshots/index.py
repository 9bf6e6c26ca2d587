"""User snapshots in memory: lookups by ID and by number, children by parent, claims and holds. No function blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

from imgfs.errors import AlreadyExists, Busy
from imgfs.snapshots.ids import shown, subject
from imgfs.snapshots.rows import Info

_TOLD = 5
"""Limit for the number of children that a message names."""


class Index:
    """The user snapshots of one state directory. Lookups take constant time.

    An ID is *claimed* during a change that takes long, such as a sync: the snapshot exists, and all other changes raise
    Busy. An ID is *held* while mounts use it. Several mounts may hold one ID.
    """

    def __init__(self, infos: Iterable[Info]) -> None:
        self._infos: dict[str, Info] = {}
        self._numbered: dict[int, Info] = {}
        self._children: dict[str, set[str]] = {}
        self._claimed: set[str] = set()
        self._holds: Counter[str] = Counter()
        self.version = 0
        """Changes whenever a snapshot is made or changed."""
        for info in infos:
            self.remember(info)

    def __iter__(self) -> Iterator[Info]:
        return iter(sorted(self._infos.values(), key=lambda one: one.id))

    def __len__(self) -> int:
        return len(self._infos)

    def get(self, id: str) -> Info | None:
        """Return the user snapshot, or None."""
        return self._infos.get(id)

    def numbered(self, number: int) -> Info | None:
        """Return the user snapshot with that number, or None. A commit changes the ID and not the number."""
        return self._numbered.get(number)

    def children(self, id: str) -> list[str]:
        """Return the IDs of the user snapshots with this parent, and of the views that pin it, sorted."""
        return sorted(self._children.get(id, ()))

    def remember(self, info: Info) -> None:
        """Insert a snapshot, or replace the one with the same ID."""
        self.forget(info.id)
        self.version += 1
        self._infos[info.id] = self._numbered[info.number] = info
        if info.parent is not None:
            self._children.setdefault(info.parent, set()).add(info.id)

    def forget(self, id: str) -> None:
        """Remove an ID. An unknown ID is no error."""
        found = self._infos.pop(id, None)
        if found is None:
            return
        self._numbered.pop(found.number, None)
        if found.parent is None:
            return
        siblings = self._children[found.parent]
        siblings.discard(id)
        if not siblings:
            del self._children[found.parent]

    def hold(self, id: str) -> None:
        """Add a hold. Raises Busy while the snapshot is claimed."""
        self.check_settled(id)
        self._holds[id] += 1

    def release(self, id: str) -> None:
        """Remove a hold."""
        assert self._holds[id] > 0, f"{subject(id)}: released more often than held"
        self._holds[id] -= 1
        if not self._holds[id]:
            del self._holds[id]

    def is_held(self, id: str) -> bool:
        """Return whether the snapshot is in use."""
        return id in self._holds

    @contextmanager
    def claim(self, *ids: str) -> Generator[None]:
        """Claim `ids` while the block runs. None of them may be claimed already."""
        assert self._claimed.isdisjoint(ids)
        self._claimed.update(ids)
        try:
            yield
        finally:
            self._claimed.difference_update(ids)

    def check_free(self, id: str) -> None:
        """Raise AlreadyExists if the ID exists or is claimed."""
        if id in self._infos or id in self._claimed:
            raise AlreadyExists(f"{subject(id)}: exists already; choose another name or remove it first")

    def check_settled(self, id: str) -> None:
        """Raise Busy while the snapshot is claimed."""
        if id in self._claimed:
            raise Busy(f"{subject(id)}: is being committed; try again when it is done")

    def check_unused(self, id: str) -> None:
        """Raise Busy while the snapshot is held or claimed."""
        self.check_settled(id)
        if self.is_held(id):
            raise Busy(f"{subject(id)}: is in use ({self._holds[id]} times); unmount it or end its container first")

    def check_childless(self, id: str) -> None:
        """Raise Busy, with the names of the first children, if the snapshot has children."""
        children = self.children(id)
        if children:
            more = f" and {len(children) - _TOLD} more" if len(children) > _TOLD else ""
            raise Busy(
                f"{subject(id)}: has children {', '.join(map(shown, children[:_TOLD]))}{more}; remove them first"
            )
