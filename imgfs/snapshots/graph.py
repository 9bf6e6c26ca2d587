"""The graph of committed snapshots: chain ID -> parent chain ID and the layer on top.

Owns the table, and the range of inode numbers of each snapshot's view. A range is permanent, so the numbers survive
every restart. Ranges follow one another from the bottom, because 32-bit programs cannot stat larger numbers. The rows
can be rebuilt by walking the images again.
"""

from __future__ import annotations

import math
import sqlite3
import time
from bisect import bisect_right, insort
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from imgfs.database.database import Database
from imgfs.database.kept import Kept
from imgfs.errors import ImgfsError, NotFound, StateError
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import EMPTY, Digest, chain_ids

SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    chain_id TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL,
    diff_id TEXT NOT NULL,
    blob TEXT NOT NULL,
    created INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS inodes (
    snapshot INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL
);
"""


def _check_row(chain_id: str, parent: str, diff_id: str, blob: str, created: int) -> None:
    Digest.parse(chain_id)
    for one in filter(None, (parent, diff_id, blob)):
        Digest.parse(one)


KEPT = Kept(
    tuple[str, str, str, str, int],
    ("snapshots", "user_snapshots"),
    """
    WITH RECURSIVE below (chain_id) AS (
        SELECT CAST(parent AS TEXT) FROM user_snapshots
        UNION SELECT parent FROM snapshots JOIN below USING (chain_id)
    )
    SELECT chain_id, parent, diff_id, blob, created FROM snapshots JOIN below USING (chain_id) ORDER BY chain_id
    """,
    "INSERT OR IGNORE INTO snapshots (chain_id, parent, diff_id, blob, created) VALUES (?, ?, ?, ?, ?)",
    _check_row,
)
"""Selects the chains that are parents of users' snapshots. Other chains are found again by walking the images."""


FIRST_INODE = 2
"""1 is the root of the mount."""
_UNCOUNTED = 1 << 32
"""Start of the ranges that were reserved on a full disk, in memory only. No permanent range follows them."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A committed snapshot. `diff_id` and `blob` (the layer's descriptor digest) are None if it has no layer."""

    number: int
    chain_id: Digest
    parent: Digest | None
    diff_id: Digest | None
    blob: Digest | None
    created: int


@dataclass(frozen=True, slots=True)
class SnapshotLayer:
    """One layer of a chain: the blob to fetch and the diff ID it must have."""

    blob: Digest
    diff_id: Digest


class Face(IntEnum):
    """What a view shows: the whole rootfs, or the snapshot's own changes. The value is the sign of the key in the
    table."""

    ROOTFS = 1
    CHANGES = -1


class SnapshotGraph:
    """All committed snapshots of one state directory, in memory."""

    def __init__(self, database: Database) -> None:
        """Load the table."""
        self._database = database
        self._snapshots: dict[Digest, Snapshot] = {}
        self._by_number: dict[int, Snapshot] = {}
        self._gone: dict[Digest, int] = {}
        """The numbers of removed chains. A chain that comes back reuses its number, because the kernel may know its
        inodes."""
        self._load(database.read_now(_select_all))
        self._ranges: list[tuple[int, int]] = sorted(
            database.read_now(lambda db: db.execute("SELECT first, snapshot FROM inodes").fetchall())
        )
        """First inode and key (the snapshot's number, negative for its changes) of each range."""
        self._firsts = {number: first for first, number in self._ranges}

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(sorted(self._snapshots.values(), key=lambda one: one.chain_id))

    def find(self, chain_id: Digest) -> Snapshot | None:
        """The snapshot, or None."""
        return self._snapshots.get(chain_id)

    def layers(self, snapshot: Snapshot) -> list[SnapshotLayer]:
        """The layers of the chain, base first. Raises NotFound if it was removed."""
        chain: list[SnapshotLayer] = []
        here: Snapshot | None = snapshot
        while here is not None and here.diff_id is not None and here.blob is not None:
            chain.append(SnapshotLayer(here.blob, here.diff_id))
            here = self._parent(here)
        return chain[::-1]

    def over(self, diff_ids: Container[Digest]) -> set[Digest]:
        """Return the IDs of all chains with one of these layers."""
        return {one.chain_id for one in self if any(layer.diff_id in diff_ids for layer in self._known_layers(one))}

    def _known_layers(self, snapshot: Snapshot) -> list[SnapshotLayer]:
        try:
            return self.layers(snapshot)
        except NotFound:
            return []  # it was removed

    def layer(self, diff_id: Digest) -> SnapshotLayer | None:
        """A layer of any chain by its diff ID, or None."""
        found = (one.blob for one in self._snapshots.values() if one.diff_id == diff_id and one.blob)
        blob = next(found, None)
        return SnapshotLayer(blob, diff_id) if blob else None

    def children(self, chain_id: Digest) -> list[Digest]:
        """Return the chains whose parent is this chain."""
        return [one.chain_id for one in self._snapshots.values() if one.parent == chain_id]

    def locate(self, inode: int) -> tuple[Snapshot, Face, int]:
        """Return the view with that inode number, and the number of the node in it, from 1. Raises NotFound."""
        position = bisect_right(self._ranges, (inode, math.inf)) - 1
        if position < 0:
            raise NotFound(f"inode {inode}: no snapshot has it")
        first, key = self._ranges[position]
        if abs(key) not in self._by_number:
            raise NotFound(f"inode {inode}: its snapshot was removed")
        return self._by_number[abs(key)], Face.ROOTFS if key > 0 else Face.CHANGES, inode - first + 1

    def first_inode(self, snapshot: Snapshot) -> int | None:
        """The inode number of the root of the snapshot's rootfs; None before it was reserved."""
        return self._firsts.get(snapshot.number)

    async def reserve(self, snapshot: Snapshot, face: Face, count: int) -> int:
        """Return the first of the `count` inode numbers of a view, the same each time. Durable unless the disk is
        full."""
        key = snapshot.number * face
        # A range without a row belongs to a removed chain. No other view uses that range.
        known = self._firsts.get(key, _UNCOUNTED)

        def change(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT 1 FROM inodes WHERE snapshot = ?", (key,)).fetchone()
            (end,) = db.execute("SELECT max(first + count) FROM inodes").fetchone()
            first = known if known < _UNCOUNTED and row is None else max(end or 0, FIRST_INODE)
            db.execute("INSERT OR REPLACE INTO inodes VALUES (?, ?, ?)", (key, first, count))
            return first

        try:
            first = await self._reserved(key, count) or await self._database.write(change)
        except StateError:
            # Content must be readable even if the disk cannot be written. So the view gets a fixed range of 64-bit
            # numbers.
            first = snapshot.number * _UNCOUNTED | (face is Face.CHANGES) << 31
        if (first, key) not in self._ranges:
            insort(self._ranges, (first, key))
        self._firsts[key] = first
        return first

    async def _reserved(self, key: int, count: int) -> int | None:
        asked = "SELECT first FROM inodes WHERE snapshot = ? AND count = ?"
        row = await self._database.read(lambda db: db.execute(asked, (key, count)).fetchone())
        return row[0] if row else None

    async def record(self, layers: Sequence[tuple[Descriptor, Digest]]) -> Snapshot:
        """Make sure that the chain of `layers` (descriptor and diff ID, base first) and all its prefixes are known.

        Durable on return. Returns the topmost chain. A chain that was removed gets its number back, and so its inodes.
        """
        chain = chain_ids([diff_id for _, diff_id in layers])
        top = chain[-1] if chain else EMPTY
        if top not in self._snapshots:
            now = time.time_ns()
            rows = [
                (self._gone.get(chain[n]), chain[n], chain[n - 1] if n else "", diff_id, descriptor.digest, now)
                for n, (descriptor, diff_id) in enumerate(layers)
            ] or [(self._gone.get(EMPTY), EMPTY, "", "", "", now)]
            self._load(await self._database.write(lambda db: _insert(db, rows)))
        return self._snapshots[top]

    async def remove(self, chain_ids: Collection[Digest]) -> None:
        """Forget chains durably. None may be the parent of a chain that stays. Lookups miss them from the first await
        on.

        If the write fails, lookups find them again.

        Their inode numbers stay theirs: for this daemon, because the kernel may know some; on disk for the highest
        range, because ranges are counted from there.
        """
        gone = [found for chain_id in chain_ids if (found := self._snapshots.pop(chain_id, None))]
        for one in gone:
            self._by_number.pop(one.number, None)
            self._gone[one.chain_id] = one.number

        def change(db: sqlite3.Connection) -> None:
            rows = [(one.number,) for one in gone if one.chain_id not in self._snapshots]  # recorded again meanwhile
            db.executemany("DELETE FROM snapshots WHERE number = ?", rows)
            db.executemany(
                "DELETE FROM inodes WHERE abs(snapshot) = ? AND first < (SELECT max(first) FROM inodes)", rows
            )

        try:
            await self._database.write(change, frees=True)
        except ImgfsError:
            for one in gone:
                self._by_number.setdefault(one.number, self._snapshots.setdefault(one.chain_id, one))
            raise

    def _parent(self, snapshot: Snapshot) -> Snapshot | None:
        if snapshot.parent is None:
            return None
        if snapshot.parent not in self._snapshots:
            raise NotFound(f"snapshot {snapshot.chain_id}: was removed; no image here has these layers any more")
        return self._snapshots[snapshot.parent]

    def _load(self, rows: list[tuple[int, str, str, str, str, int]]) -> None:
        for number, chain_id, parent, diff_id, blob, created in rows:
            snapshot = Snapshot(number, Digest(chain_id), _digest(parent), _digest(diff_id), _digest(blob), created)
            self._snapshots[snapshot.chain_id] = snapshot
            self._by_number[number] = snapshot


def _digest(text: str) -> Digest | None:
    return Digest(text) if text else None


def _select_all(db: sqlite3.Connection) -> list[tuple[int, str, str, str, str, int]]:
    return db.execute("SELECT number, chain_id, parent, diff_id, blob, created FROM snapshots").fetchall()


def _insert(db: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> list[tuple[int, str, str, str, str, int]]:
    db.executemany(
        "INSERT OR IGNORE INTO snapshots (number, chain_id, parent, diff_id, blob, created) VALUES (?, ?, ?, ?, ?, ?)",
        rows,
    )
    return _select_all(db)
