"""Lookup of snapshots, users' own and image chains, and of the parents of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import Invalid, NotFound, NotPermitted, StorageFailed, TooLarge
from imgfs.kernel.overlay import MOST_LOWERS
from imgfs.oci.digest import Digest, is_digest
from imgfs.snapshots.directories import SnapshotDirectories
from imgfs.snapshots.graph import Snapshot, SnapshotGraph
from imgfs.snapshots.ids import subject
from imgfs.snapshots.index import Index
from imgfs.snapshots.rows import Info, SnapshotKind


@dataclass(frozen=True, slots=True)
class Stack:
    """What to mount. `lowers` are directories of changes, the nearest first; below them lies `chain`, if there is one.

    `upper` and `work` are set only if the snapshot is active and mounted writable; otherwise its own changes are the
    nearest of `lowers`. Without a chain, an overlay has `Lineage.empty` at the bottom, because overlayfs needs one
    lower with an upper, and two lowers without.
    """

    lowers: tuple[Path, ...]
    chain: Digest | None
    upper: Path | None = None
    work: Path | None = None


class Lineage:
    """The snapshots of one state directory, in their current state. No method blocks."""

    def __init__(self, graph: SnapshotGraph, index: Index, directories: SnapshotDirectories) -> None:
        self._graph = graph
        self._index = index
        self._directories = directories

    def __iter__(self) -> Iterator[Info]:
        """Iterate over all user snapshots by ID, including active ones."""
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def version(self) -> int:
        """Changes whenever a snapshot is made or changed."""
        return self._index.version

    @property
    def empty(self) -> Path:
        """A directory that stays empty, the lowest layer of overlays without a chain."""
        return self._directories.empty

    def find(self, id: str) -> Info | None:
        """Return the snapshot with this ID, which may be an image chain, or None."""
        chain = self._chain(id)
        if chain is None:
            return self._index.get(id)
        return Info(chain.number, SnapshotKind.COMMITTED, id, chain.parent, chain.created, chain.created)

    def find_own(self, id: str) -> Info | None:
        """Return the user snapshot of that id, or None; image chains are not found."""
        return self._index.get(id)

    def numbered(self, number: int) -> Info:
        """Return the user snapshot with this number, which survives a commit. Raises NotFound."""
        found = self._index.numbered(number)
        if found is None:
            raise NotFound(f"snapshot number {number}: was removed")
        return found

    def stat(self, id: str) -> Info:
        """As `find`. Raises NotFound."""
        found = self.find(id)
        if found is None:
            raise NotFound(f"{subject(id)}: does not exist")
        return found

    def children(self, id: str) -> list[str]:
        """Return the IDs of the child snapshots, of the views that pin it, and of child chains if it is a chain."""
        chains = self._graph.children(Digest(id)) if is_digest(id) else []
        return sorted([*chains, *self._index.children(id)])

    def stack(self, id: str, *, read_only: bool = False) -> Stack:
        """Return the layers of the rootfs, in time linear in its depth. With `read_only` there is no upper.

        Raises NotFound, and StorageFailed for damage.
        """
        info = self.stat(id)
        here: Info | None = info
        uppers: list[Path] = []
        chain: Digest | None = None
        while here is not None:
            if is_digest(here.id):
                chain = Digest(here.id)
                break
            if here.kind is not SnapshotKind.VIEW:
                uppers.append(self._upper(here))
            here = self.stat(here.parent) if here.parent else None
        if info.kind is not SnapshotKind.ACTIVE:
            return Stack(tuple(uppers), chain)
        if read_only:
            # A snapshot that was never used has no changes, and its root has the attributes of its parent's.
            return Stack(tuple(uppers if info.used else uppers[1:]), chain)
        return Stack(tuple(uppers[1:]), chain, uppers[0], self._directories.work(info.number))

    def upper(self, id: str) -> Path:
        """Return the directory of the snapshot's own changes.

        Raises NotFound, NotPermitted if it has none, StorageFailed.
        """
        return self._upper(self._user(id))

    def _chain(self, id: str) -> Snapshot | None:
        return self._graph.find(Digest(id)) if is_digest(id) else None

    def _user(self, id: str) -> Info:
        """Return the user snapshot. Raises NotFound, NotPermitted for an image chain."""
        if self._chain(id):
            raise NotPermitted(f"{subject(id)}: belongs to the images with these layers; remove their names instead")
        return self.stat(id)

    def _target(self, id: str) -> str:
        """Return the id to use as a parent: for a view, its target. Raises NotFound, Invalid for an active snapshot."""
        info = self.stat(id)
        if info.kind is SnapshotKind.ACTIVE:
            raise Invalid(f"{subject(id)}: is active and can be no parent; commit it first")
        return info.parent or id if info.kind is SnapshotKind.VIEW else id

    def _foundation(self, parent: str | None) -> str | None:
        """Return the parent id to store for `parent`. Raises NotFound, Invalid, TooLarge."""
        if parent is None:
            return None
        target = self._target(parent)
        self._check_depth(target)
        return target

    def _check_depth(self, parent: str) -> None:
        """Raise TooLarge unless a snapshot committed on `parent` can still be mounted, counting the lowest layer."""
        depth, here = 2, self.find_own(parent)
        while here is not None:
            depth, here = depth + 1, self.find_own(here.parent) if here.parent else None
        if depth > MOST_LOWERS:
            raise TooLarge(f"{subject(parent)}: {depth - 2} snapshots deep, of {MOST_LOWERS - 2} at most; flatten it")

    def _upper(self, info: Info) -> Path:
        if info.kind is SnapshotKind.VIEW:
            raise NotPermitted(f"{subject(info.id)}: is a view and has no changes of its own")
        if info.damaged:
            raise StorageFailed(f"{subject(info.id)}: its directory {info.number} is lost; remove the snapshot")
        return self._directories.upper(info.number)
