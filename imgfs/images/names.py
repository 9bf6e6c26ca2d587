"""Image names: `host/repository:tag` (or a local name) -> digest, shown as symbolic links below images/.

This module owns the table of names. A change is acknowledged once it survives a power cut. All names are in memory, so
a lookup costs the same with ten names and with ten thousand. Removing a name never removes content.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imgfs.database.database import Database
from imgfs.database.kept import Kept
from imgfs.errors import AlreadyExists, Invalid, NotFound
from imgfs.filename import with_colons
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest
from imgfs.oci.reference import Reference, is_host, parse_reference

SCHEMA = """
CREATE TABLE IF NOT EXISTS names (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    updated INTEGER NOT NULL
) WITHOUT ROWID;
"""


def _check_row(name: str, digest: str, updated: int) -> None:
    if not name or not name.isprintable():
        raise Invalid(f"image name {name[:200]!r}: is not a name; expected text without control characters")
    Digest.parse(digest)


KEPT = Kept(
    tuple[str, str, int],
    ("names",),
    "SELECT name, digest, updated FROM names ORDER BY name",
    "INSERT OR IGNORE INTO names VALUES (?, ?, ?)",
    _check_row,
)

NAME_MAX = 512
HOST_ALONE = (
    "is a registry's host (a number behind `:` is its port); a local name has no tag, or one that is no number, "
    "and another one its host in front"
)
"""The error for a name that ends where a repository is expected.

As a path, `mytool:1` is ambiguous: the host `mytool` with port 1, or a local name with a tag.
"""


@dataclass(frozen=True, slots=True)
class Name:
    """A registered name; `updated` is ns since the epoch."""

    name: str
    digest: Digest
    updated: int

    @property
    def reference(self) -> Reference | None:
        """The reference to request from a registry; None for a local name."""
        return reference_of(self.name)


def reference_of(name: str) -> Reference | None:
    """Return the registry reference of a name; None if the name is local or malformed."""
    if not is_host(name.partition("/")[0]):
        return None
    try:
        return parse_reference(name)
    except Invalid:
        return None


def is_local_name(name: str) -> bool:
    """Return whether `name` may be registered without a host: one printable component, neither digest nor host."""
    return bool(
        "/" not in name
        and name not in ("", ".", "..")
        and name.isprintable()
        and len(name.encode()) <= 255
        and not is_digest(with_colons(name))
        and not is_host(name)
    )


class Names:
    """All names of one state directory."""

    def __init__(self, database: Database) -> None:
        """Load the table. Blocks."""
        self._database = database
        self._names: dict[str, Name] = {}
        self._below: dict[str, set[str]] = {"": set()}
        self._by_digest: dict[Digest, set[str]] = {}
        self.version = 0
        """Changes whenever a digest gets a name."""
        for name in database.read_now(select):
            self._remember(name)

    def __iter__(self) -> Iterator[Name]:
        return iter(sorted(self._names.values(), key=lambda one: one.name))

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: str) -> Name | None:
        """Return the registered name, or None."""
        return self._names.get(name)

    def below(self, prefix: str) -> list[str]:
        """Return the next components of all names below the directory `prefix` ("" for the top), sorted."""
        return sorted(self._below.get(prefix, ()))

    def of(self, digest: Digest) -> list[Name]:
        """Return every name of `digest`, sorted."""
        return [self._names[name] for name in sorted(self._by_digest.get(digest, ()))]

    def digests(self) -> list[Digest]:
        """Return every digest that has a name, sorted."""
        return sorted(self._by_digest)

    async def create(self, name: str, digest: Digest) -> Name:
        """Register a new name durably. Raises AlreadyExists, Invalid, NoSpace, StorageFailed."""
        if name in self._names:
            raise _taken(name)
        return await self._write(name, digest, _insert)

    async def put(self, name: str, digest: Digest) -> Name:
        """Register or replace a name, durably and atomically. Raises Invalid, NoSpace, StorageFailed."""
        return await self._write(name, digest, _upsert)

    async def _write(self, name: str, digest: Digest, change: Callable[[sqlite3.Connection, Name], None]) -> Name:
        check_name(name)
        made = Name(name, digest, time.time_ns())
        await self._database.write(lambda db: change(db, made))
        self._forget(name)
        self._remember(made)
        return made

    async def remove(self, name: str) -> None:
        """Remove a name durably; its content stays. Raises NotFound, NoSpace, StorageFailed."""
        if name not in self._names:
            raise NotFound(f"image {name}: is not registered")
        await self._database.write(lambda db: db.execute("DELETE FROM names WHERE name = ?", (name,)), frees=True)
        self._forget(name)

    async def rename(self, old: str, new: str) -> None:
        """Rename a name, replacing `new`, in one durable step. Raises NotFound, Invalid, NoSpace, StorageFailed."""
        check_name(new)
        found = self._names.get(old)
        if found is None:
            raise NotFound(f"image {old}: is not registered")
        if old == new:
            return
        made = Name(new, found.digest, time.time_ns())

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM names WHERE name = ?", (old,))
            _upsert(db, made)

        await self._database.write(change)
        self._forget(old)
        self._forget(new)
        self._remember(made)

    def _remember(self, name: Name) -> None:
        self.version += 1
        self._names[name.name] = name
        self._by_digest.setdefault(name.digest, set()).add(name.name)
        prefix, _, component = name.name.rpartition("/")
        while True:
            self._below.setdefault(prefix, set()).add(component)
            if not prefix:
                return
            prefix, _, component = prefix.rpartition("/")

    def _forget(self, name: str) -> None:
        found = self._names.pop(name, None)
        if found is None:
            return
        named = self._by_digest[found.digest]
        named.discard(name)
        if not named:
            del self._by_digest[found.digest]
        prefix, _, component = name.rpartition("/")
        while True:
            path = f"{prefix}/{component}" if prefix else component
            if path not in self._names and not self._below.get(path):
                self._below.pop(path, None)
                self._below[prefix].discard(component)
            if not prefix:
                return
            prefix, _, component = prefix.rpartition("/")


def select(db: sqlite3.Connection) -> list[Name]:
    """Return all names as they are on disk."""
    rows = db.execute("SELECT name, digest, updated FROM names").fetchall()
    return [Name(name, Digest(digest), updated) for name, digest, updated in rows]


def check_name(name: str) -> None:
    """Raise Invalid unless `name` may be registered."""
    is_odd = name.partition(":")[0] in HEX_LENGTH or name.startswith(("-", ":")) or name.endswith(":")
    if len(name) > NAME_MAX or (reference_of(name) is None and (is_odd or not is_local_name(name))):
        if is_host(name):
            raise Invalid(f"image name {name[:200]!r}: {HOST_ALONE}")
        raise Invalid(
            f"image name {name[:200]!r}: expected host/repository:tag, host/repository@digest or a plain word"
        )


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"image {name}: is registered already; `ln -sfn` replaces it")


def _insert(db: sqlite3.Connection, name: Name) -> None:
    """Insert a new name. Checks again, because two callers may create the same name at once."""
    if db.execute("SELECT 1 FROM names WHERE name = ?", (name.name,)).fetchone() is not None:
        raise _taken(name.name)
    _upsert(db, name)


def _upsert(db: sqlite3.Connection, name: Name) -> None:
    db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", (name.name, name.digest, name.updated))
