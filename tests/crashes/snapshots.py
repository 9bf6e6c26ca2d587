"""A worker on snapshots: prepares, writes into rootfs, commits, views, labels, removes; with and without parents."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from imgfs.disk.durable import fsync_path
from tests.crashes.ledger import Fact, Plain, Snapshot, noise
from tests.crashes.worker import Place, own
from tests.mount.scene import Scene, until

_ACTIVE, _COMMITTED, _VIEWS = 4, 4, 3
_LABEL = "user.label.colour"


class Snapshots(Place):
    """Facts: `active/<key>`, `<name>`, and `view/<name>` with the target that the view pins.

    The worker compares every file that a rootfs shows under one of its names, including the files of parents.
    """

    def __init__(self, scene: Scene, name: str, seed: int, base: str) -> None:
        super().__init__(scene, name, seed)
        self._base = base

    @property
    def _snapshots(self) -> Path:
        return self.tree / "snapshots"

    def step(self) -> None:
        active, committed, views, free = self._active(), self._committed(), self._views(), self._free()
        fresh = [id for id in active if self._at(id).parent is None and not self._at(id).files]
        self.draw(
            [
                (6 if len(active) < _ACTIVE else 0, self._prepare),
                (4 if fresh else 0, lambda: self._set_parent(self.chance.choice(fresh))),
                (9 if active else 0, lambda: self._write(self.chance.choice(active))),
                (4 if active else 0, lambda: self._commit(self.chance.choice(active))),
                (2 if active or committed else 0, lambda: self._label(self.chance.choice(active + committed))),
                (3 if len(views) < _VIEWS else 0, self._view),
                (2 if views else 0, lambda: self._remove_view(self.chance.choice(views))),
                (1 if active else 0, lambda: self._remove(self.chance.choice(active))),
                (3 if len(committed) > _COMMITTED and free else 0, lambda: self._remove(self.chance.choice(free))),
            ]
        )

    def look(self) -> dict[str, Fact]:
        found: dict[str, Fact] = {}
        for id in own(os.listdir(self._snapshots), self.name):
            if (self._snapshots / id).is_symlink():
                found[f"view/{id}"] = Plain(os.readlink(self._snapshots / id))
            else:
                found[id] = self._seen(id)
        for key in own(os.listdir(self._snapshots / "active"), self.name):
            found[f"active/{key}"] = self._seen(f"active/{key}")
        return found

    def _seen(self, id: str) -> Snapshot:
        """Return the seen files.

        A walk to the rootfs of an active snapshot fixes its parent; the ledger allows this.
        """
        path = self._snapshots / id
        kind = os.getxattr(path, "user.imgfs.kind").decode()
        parent = os.readlink(path / "parent").rpartition("../")[2] if (path / "parent").is_symlink() else None
        label = os.getxattr(path, _LABEL) if _LABEL in os.listxattr(path) else None
        if kind == "active" and parent is None and not self._has_files(id):
            return Snapshot(kind, parent, {}, label)
        names = own(until(lambda: _listed(path / "rootfs")), self.name)
        return Snapshot(kind, parent, {name: (path / "rootfs" / name).read_bytes() for name in names}, label)

    def _has_files(self, id: str) -> bool:
        """Return whether to walk into the rootfs, which fixes the parent: only if there may be files."""
        facts = [picture.get(id) for picture in self.ledger.allowed()]
        return any(isinstance(fact, Snapshot) and fact.files for fact in facts)

    def _at(self, id: str) -> Snapshot:
        fact = self.ledger.facts[id]
        assert isinstance(fact, Snapshot)
        return fact

    def _active(self) -> list[str]:
        return [id for id in self.ledger.facts if id.startswith("active/")]

    def _views(self) -> list[str]:
        return [id for id in self.ledger.facts if id.startswith("view/")]

    def _committed(self) -> list[str]:
        return [id for id in self.ledger.facts if "/" not in id]

    def _free(self) -> list[str]:
        """Return committed snapshots that have no children and no view."""
        pinned = {fact.value for fact in self.ledger.facts.values() if isinstance(fact, Plain)}
        parents = {fact.parent for fact in self.ledger.facts.values() if isinstance(fact, Snapshot)}
        return [id for id in self._committed() if id not in pinned | parents]

    def _files_of(self, parent: str) -> Mapping[str, bytes]:
        return self._at(parent).files if parent in self.ledger.facts else {}

    def _prepare(self) -> None:
        key = self.new()
        with self.ledger.doing(f"mkdir active/{key}", {f"active/{key}": Snapshot("active", None, {})}):
            os.mkdir(self._snapshots / "active" / key)

    def _set_parent(self, id: str) -> None:
        """Set the parent. The daemon may refuse this as busy if a look has fixed the parent."""
        parent = self.chance.choice([self._base, *self._committed()])
        after = replace(self._at(id), parent=parent, files=self._files_of(parent))
        with self.ledger.doing(f"ln -s {parent} {id}/parent", {id: after}):
            os.symlink(f"../../{parent}", self._snapshots / id / "parent")

    def _write(self, id: str) -> None:
        name, syncs = self.new(), self.chance.random() < 0.5
        snapshot, data = self._at(id), noise(name, self.chance.choice([10, 5_000, 70_000]))
        rest = {**snapshot.files, name: data}
        after = replace(snapshot, files=rest, loose=snapshot.loose or not syncs)
        rootfs = self._snapshots / id / "rootfs"
        self.ledger.note(f"in {id}")
        with self.ledger.doing(f"write {id}/rootfs/{name} {'and sync' * syncs}", {id: after}):
            # The worker writes to a temporary name and renames it, so that the file has all its bytes or does not
            # exist.
            (rootfs / f"new-{name}").write_bytes(data)
            if syncs:
                fsync_path(rootfs / f"new-{name}")
            os.rename(rootfs / f"new-{name}", rootfs / name)
            if syncs:
                fsync_path(rootfs)

    def _commit(self, id: str) -> None:
        name = self.new()
        after = replace(self._at(id), kind="committed", loose=False)
        with self.ledger.doing(f"mv {id} {name}", {id: None, name: after}):
            os.rename(self._snapshots / id, self._snapshots / name)

    def _label(self, id: str) -> None:
        value = self.new().encode()
        with self.ledger.doing(f"label {id} {value!r}", {id: replace(self._at(id), label=value)}):
            os.setxattr(self._snapshots / id, _LABEL, value)

    def _view(self) -> None:
        name, target = self.new(), self.chance.choice([self._base, *self._committed()])
        with self.ledger.doing(f"ln -s {target} {name}", {f"view/{name}": Plain(target)}):
            os.symlink(target, self._snapshots / name)

    def _remove_view(self, view: str) -> None:
        with self.ledger.doing(f"rm {view}", {view: None}):
            os.unlink(self._snapshots / view.removeprefix("view/"))

    def _remove(self, id: str) -> None:
        with self.ledger.doing(f"rmdir {id}", {id: None}):
            os.rmdir(self._snapshots / id)


def _listed(rootfs: Path) -> list[str]:
    """Return all files, also the parent's; none yet while the kernel unmounts a dead daemon's overlay."""
    try:
        return [*os.listdir(rootfs), "."]
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return []
