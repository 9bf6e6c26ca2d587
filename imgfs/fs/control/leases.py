""".imgfs/leases/: each lease is a directory whose links pin their targets until `user.imgfs.expires`."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import pyfuse3

from imgfs.errors import Invalid
from imgfs.filename import with_colons
from imgfs.fs.caller import Caller
from imgfs.fs.node import Directory, Link, Listing, NoAttribute, Node, Shown, missing
from imgfs.fs.xattrs import as_moment
from imgfs.leases.resource import parse_resource
from imgfs.leases.store import Lease, Leases

_EXPIRES = b"user.imgfs.expires"
_SECOND = 10**9
_LATEST = (1 << 63) // _SECOND - 1
"""The latest expiry in seconds: the database counts nanoseconds in 64 bits."""


class LeasesDirectory(Directory):
    """mkdir creates a lease; rmdir deletes it and unpins everything."""

    __slots__ = ("_leases",)

    def __init__(self, shown: Shown, leases: Leases) -> None:
        super().__init__(".imgfs/leases", shown)
        self._leases = leases

    def has_literally(self, name: str) -> bool:
        return self._leases.get(name) is not None

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        lease = self._leases.get(os.fsdecode(name))
        if lease is None:
            raise missing(name)
        return LeaseDirectory(self._shown, self._leases, lease)

    async def entries(self, caller: Caller) -> Listing:
        return [(os.fsencode(lease.id), LeaseDirectory(self._shown, self._leases, lease)) for lease in self._leases]

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        return LeaseDirectory(self._shown, self._leases, await self._leases.create(os.fsdecode(name)))

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        await self._leases.delete(os.fsdecode(self.canonical(name)))


class LeaseDirectory(Directory):
    """One lease. Link names are free; a target is a path of this tree and need not exist yet.

    The lease does not expire while a process has the directory open.
    """

    __slots__ = ("_created", "_id", "_leases")

    def __init__(self, shown: Shown, leases: Leases, lease: Lease) -> None:
        super().__init__(f".imgfs/leases/{lease.id}/{lease.created}", shown)
        self._leases = leases
        self._id = lease.id
        self._created = lease.created

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._shown.entry(self.number, stat.S_IFDIR | self.mode, time=self._created)

    def has_literally(self, name: str) -> bool:
        return name in self._leases.stat(self._id).links

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        for found, link in self._links():
            if found == name:
                return link
        raise missing(name)

    async def entries(self, caller: Caller) -> Listing:
        return self._links()

    def held(self) -> AbstractContextManager[object]:
        return self._leases.held(self._id)

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        await self._leases.add(self._id, os.fsdecode(name), parse_resource(with_colons(os.fsdecode(target))))
        return await self.lookup(name, caller)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        await self._leases.remove(self._id, os.fsdecode(name))

    async def xattrs(self) -> dict[bytes, bytes]:
        expires = self._leases.stat(self._id).expires
        return {} if expires is None else {_EXPIRES: as_moment(expires)}

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Set `user.imgfs.expires`: RFC 3339, or seconds since the epoch."""
        if name != _EXPIRES:
            raise self.refusal()
        await self._leases.set_expiry(self._id, _moment(value))

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        if name not in await self.xattrs():
            raise NoAttribute(f"{name!r}: no such attribute")
        await self._leases.set_expiry(self._id, None)

    def _links(self) -> list[tuple[bytes, Node]]:
        lease = self._leases.stat(self._id)
        return [
            (os.fsencode(name), Link(f".imgfs/leases/{lease.id}/{name}", self._shown, f"../../../{resource}"))
            for name, resource in lease.links.items()
        ]


def _moment(value: bytes) -> int:
    text = value.decode(errors="replace").strip()
    try:
        seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else _seconds(text)
    except ValueError:
        raise Invalid(f"lease expiry {text[:40]!r}: expected 2026-01-31T12:00:00Z or seconds since the epoch") from None
    if not 0 <= seconds <= _LATEST:
        raise Invalid(f"lease expiry {text[:40]!r}: expected a moment from 1970 to 2262; without one it never expires")
    return seconds * _SECOND


def _seconds(text: str) -> int:
    found = datetime.fromisoformat(text)
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
