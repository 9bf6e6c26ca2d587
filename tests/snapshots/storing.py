"""A snapshot store on a directory, with a recorded sync. It can be reopened as after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.database.database import Database
from imgfs.oci.descriptor import OCI_LAYER, Descriptor
from imgfs.oci.digest import Digest
from imgfs.snapshots import graph, rows
from imgfs.snapshots.graph import SnapshotGraph
from imgfs.snapshots.store import SnapshotStore


@dataclass
class Disk:
    """The `sync` of a store. It records the synced directories, and fails if the test says so."""

    synced: list[Path] = field(default_factory=list[Path])
    error: OSError | None = None

    def sync(self, path: Path) -> None:
        self.synced.append(path)
        if self.error is not None:
            raise self.error


class Warehouse:
    """A store with its state directory, database and graph."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.disk = Disk()
        self.open()

    def open(self) -> None:
        self.database = Database(self.state / "imgfs.db", [graph.SCHEMA, rows.SCHEMA])
        self.graph = SnapshotGraph(self.database)
        self.store = SnapshotStore(self.state, self.database, self.graph, self.disk.sync)

    def reopen(self) -> SnapshotStore:
        """Open the store again, without the memory of the last one."""
        self.database.close()
        self.open()
        return self.store

    def close(self) -> None:
        self.database.close()

    def directories(self) -> list[str]:
        """Return the snapshot directories except the empty directory."""
        return sorted(path.name for path in (self.state / "snapshots").iterdir() if path != self.store.empty)

    async def chain(self, *layers: str) -> Digest:
        """Record an image chain."""
        pairs = [
            (Descriptor(Digest.of(f"blob {name}".encode()), 1, OCI_LAYER), Digest.of(name.encode())) for name in layers
        ]
        return (await self.graph.record(pairs)).chain_id

    async def committed(self, name: str, parent: str | None = None) -> None:
        """Make a committed snapshot with one file. The file has the snapshot's name."""
        key = f"key of {name}"
        await self.store.prepare(key)
        if parent is not None:
            await self.store.set_parent(key, parent)
        (self.store.upper(f"active/{key}") / name).write_bytes(os.fsencode(name))
        await self.store.commit(key, name)


@contextmanager
def used(store: SnapshotStore, id: str) -> Iterator[None]:
    """Hold a snapshot while the block runs."""
    store.hold(id)
    try:
        yield
    finally:
        store.release(id)


def told(store: SnapshotStore) -> dict[str, tuple[str, str | None]]:
    """Return kinds and parents by ID."""
    return {info.id: (info.kind.value, info.parent) for info in store}
