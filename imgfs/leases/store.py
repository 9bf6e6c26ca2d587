"""Leases: each has an ID, links to the resources that it pins, and an expiry. They are durable, and cached in memory.

Owns the rows, and which holders keep a lease from expiring. What a pinned resource refers to is left to gc/; the view
of a lease as a directory with symbolic links is left to fs/.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from imgfs.database.database import Database
from imgfs.database.kept import Kept
from imgfs.errors import AlreadyExists, NotFound
from imgfs.filename import check_file_name
from imgfs.leases.resource import Resource, parse_resource

SCHEMA = """
CREATE TABLE IF NOT EXISTS leases (
    id BLOB PRIMARY KEY,
    created INTEGER NOT NULL,
    expires INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease_links (
    lease BLOB NOT NULL,
    name BLOB NOT NULL,
    resource BLOB NOT NULL,
    PRIMARY KEY (lease, name)
) WITHOUT ROWID;
"""


def _check_lease(id: bytes, created: int, expires: int | None) -> None:
    check_id(os.fsdecode(id))


def _check_link(lease: bytes, name: bytes, resource: bytes) -> None:
    check_id(os.fsdecode(lease))
    check_file_name(os.fsdecode(name), "lease link")
    parse_resource(os.fsdecode(resource))


KEPT = (
    Kept(
        tuple[bytes, int, int | None],
        ("leases",),
        "SELECT id, created, expires FROM leases ORDER BY id",
        "INSERT OR IGNORE INTO leases VALUES (?, ?, ?)",
        _check_lease,
    ),
    Kept(
        tuple[bytes, bytes, bytes],
        ("lease_links",),
        "SELECT lease, name, resource FROM lease_links ORDER BY lease, name",
        "INSERT OR IGNORE INTO lease_links VALUES (?, ?, ?)",
        _check_link,
    ),
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease. Times are ns since the epoch; `expires` is None for never. `links` has the resources by link name."""

    id: str
    created: int
    expires: int | None = None
    links: Mapping[str, Resource] = field(default_factory=lambda: MappingProxyType[str, Resource]({}))


class Leases:
    """All leases of one state directory. Changes are durable on return and may raise NoSpace and StorageFailed.

    An expired lease pins nothing and is no longer visible, unless a holder has it: then it stays unchanged until its
    last holder releases it.
    """

    def __init__(self, database: Database, now: Callable[[], int] = time.time_ns) -> None:
        """Load the tables. `now` returns the time in ns since the epoch."""
        self._database = database
        self._now = now
        self._leases: dict[str, Lease] = {}
        self._holders: Counter[str] = Counter()
        self.version = 0
        """Changes whenever a resource is pinned that may not have been pinned."""
        links = _links(database.read_now(_select_links))
        for id, created, expires in database.read_now(_select_leases):
            name = os.fsdecode(id)
            self._leases[name] = Lease(name, created, expires, MappingProxyType(links.get(name, {})))

    def __iter__(self) -> Iterator[Lease]:
        return iter(sorted(filter(self._is_alive, self._leases.values()), key=lambda one: one.id))

    def __len__(self) -> int:
        return sum(map(self._is_alive, self._leases.values()))

    def get(self, id: str) -> Lease | None:
        """The lease; None if it does not exist or has expired."""
        found = self._leases.get(id)
        return found if found is not None and self._is_alive(found) else None

    def stat(self, id: str) -> Lease:
        """The lease. Raises NotFound if it does not exist or has expired."""
        found = self.get(id)
        if found is None:
            raise NotFound(f"lease {id!r}: does not exist or has expired")
        return found

    def resources(self) -> Iterator[Resource]:
        """The resources that leases pin now; a resource of two leases comes twice."""
        for lease in self._leases.values():
            if self._is_alive(lease):
                yield from lease.links.values()

    async def create(self, id: str, expires: int | None = None) -> Lease:
        """Create a lease that pins nothing yet. Raises Invalid, AlreadyExists."""
        check_id(id)
        if self.get(id) is not None:
            raise AlreadyExists(f"lease {id!r}: exists already; choose another id or delete it first")
        made = Lease(id, self._now(), expires)
        await self._database.write(lambda db: _insert(db, made))
        self._leases[id] = made
        return made

    async def delete(self, id: str) -> None:
        """Delete a lease with all its pins, even if a holder has it. Raises NotFound."""
        lease = self.stat(id)
        await self._database.write(lambda db: _delete(db, [id]), frees=True)
        self._forget(lease)

    async def set_expiry(self, id: str, expires: int | None) -> Lease:
        """Set the expiry (ns since the epoch, None for never). Raises NotFound."""
        self.stat(id)
        await self._database.write(lambda db: _update(db, id, expires))
        return self._change(id, lambda lease: replace(lease, expires=expires))

    async def add(self, id: str, name: str, resource: Resource) -> Lease:
        """Pin one more resource as the link `name`. Raises NotFound, Invalid, and AlreadyExists if the link exists.

        The resource is pinned from the call on, before the link is durable, so garbage collection cannot come between.
        """
        check_file_name(name, "lease link")
        lease = self.stat(id)
        if name in lease.links:
            raise AlreadyExists(f"lease {id!r}: has a link {name!r} already; remove it first")
        made = self._change(id, lambda lease: replace(lease, links=_with(lease.links, name, resource)))
        try:
            await self._database.write(lambda db: _insert_link(db, id, name, resource))
        except BaseException:
            self._change(id, lambda lease: replace(lease, links=_without(lease.links, name)))
            raise
        return made

    async def remove(self, id: str, name: str) -> Lease:
        """Remove the link `name` and its pin. Raises NotFound for the lease or the link."""
        if name not in self.stat(id).links:
            raise NotFound(f"lease {id!r}: has no link {name!r}")
        key = os.fsencode(id), os.fsencode(name)
        gone = "DELETE FROM lease_links WHERE lease = ? AND name = ?"
        await self._database.write(lambda db: db.execute(gone, key), frees=True)
        return self._change(id, lambda lease: replace(lease, links=_without(lease.links, name)))

    async def expire(self) -> list[str]:
        """Delete the expired leases without a holder; returns their IDs.

        If a caller changes the expiry of such a lease at the same time, the lease stays or that caller gets NotFound.
        """
        old = sorted((lease for lease in self._leases.values() if not self._is_alive(lease)), key=lambda one: one.id)
        if not old:
            return []
        gone = set(await self._database.write(lambda db: _delete_expired(db, old), frees=True))
        for lease in old:
            if lease.id in gone:
                self._forget(lease)
        return sorted(gone)

    @contextmanager
    def held(self, id: str) -> Generator[Lease]:
        """Keep a lease from expiring until the block ends. Raises NotFound."""
        lease = self.stat(id)
        self._holders[id] += 1
        try:
            yield lease
        finally:
            self._holders[id] -= 1
            if not self._holders[id]:
                del self._holders[id]

    def _is_alive(self, lease: Lease) -> bool:
        return lease.expires is None or lease.id in self._holders or self._now() < lease.expires

    def _forget(self, lease: Lease) -> None:
        """Forget a deleted lease, in any changed version, but not a newer lease with the same ID."""
        found = self._leases.get(lease.id)
        if found is not None and found.created == lease.created:
            del self._leases[lease.id]

    def _change(self, id: str, changed: Callable[[Lease], Lease]) -> Lease:
        """Change the current version: the lease may have been changed or deleted since the caller read it."""
        found = self._leases.get(id)
        if found is None:
            raise NotFound(f"lease {id!r}: was deleted meanwhile")
        self._leases[id] = changed(found)
        self.version += 1
        return self._leases[id]


def check_id(id: str) -> None:
    """Raise Invalid unless `id` is a valid lease ID: one file name of 1 to 255 bytes."""
    check_file_name(id, "lease id")


def _with(links: Mapping[str, Resource], name: str, resource: Resource) -> Mapping[str, Resource]:
    return MappingProxyType({**links, name: resource})


def _without(links: Mapping[str, Resource], name: str) -> Mapping[str, Resource]:
    return MappingProxyType({key: value for key, value in links.items() if key != name})


def _select_leases(db: sqlite3.Connection) -> list[tuple[bytes, int, int | None]]:
    return db.execute("SELECT id, created, expires FROM leases").fetchall()


def _select_links(db: sqlite3.Connection) -> list[tuple[bytes, bytes, bytes]]:
    return db.execute("SELECT lease, name, resource FROM lease_links").fetchall()


def _links(rows: list[tuple[bytes, bytes, bytes]]) -> dict[str, dict[str, Resource]]:
    links: dict[str, dict[str, Resource]] = {}
    for lease, name, resource in rows:
        links.setdefault(os.fsdecode(lease), {})[os.fsdecode(name)] = parse_resource(os.fsdecode(resource))
    return links


def _insert(db: sqlite3.Connection, lease: Lease) -> None:
    """Check again, because two callers may create one lease at once. An expired lease is replaced."""
    row = db.execute("SELECT expires FROM leases WHERE id = ?", (os.fsencode(lease.id),)).fetchone()
    if row is not None and (row[0] is None or row[0] > lease.created):
        raise AlreadyExists(f"lease {lease.id!r}: exists already; choose another id or delete it first")
    _delete(db, [lease.id])
    db.execute("INSERT INTO leases VALUES (?, ?, ?)", (os.fsencode(lease.id), lease.created, lease.expires))


def _update(db: sqlite3.Connection, id: str, expires: int | None) -> None:
    if not db.execute("UPDATE leases SET expires = ? WHERE id = ?", (expires, os.fsencode(id))).rowcount:
        raise NotFound(f"lease {id!r}: was deleted meanwhile")


def _insert_link(db: sqlite3.Connection, id: str, name: str, resource: Resource) -> None:
    if db.execute("SELECT 1 FROM leases WHERE id = ?", (os.fsencode(id),)).fetchone() is None:
        raise NotFound(f"lease {id!r}: was deleted meanwhile")
    db.execute(
        "INSERT INTO lease_links VALUES (?, ?, ?)", (os.fsencode(id), os.fsencode(name), os.fsencode(str(resource)))
    )


def _delete_expired(db: sqlite3.Connection, leases: list[Lease]) -> list[str]:
    """Delete the leases whose expiry is unchanged since it was read; returns their IDs."""
    same = "SELECT 1 FROM leases WHERE id = ? AND expires = ?"
    gone = [one.id for one in leases if db.execute(same, (os.fsencode(one.id), one.expires)).fetchone()]
    _delete(db, gone)
    return gone


def _delete(db: sqlite3.Connection, ids: list[str]) -> None:
    keys = [(os.fsencode(id),) for id in ids]
    db.executemany("DELETE FROM leases WHERE id = ?", keys)
    db.executemany("DELETE FROM lease_links WHERE lease = ?", keys)
