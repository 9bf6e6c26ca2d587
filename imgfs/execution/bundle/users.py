"""Resolves the user of a container's process by name or number in the image's /etc/passwd and /etc/group.

Pure. The two files are untrusted bytes. Invalid lines are skipped, as in the C library. The rules are those of Docker
and podman (image-spec, config.md, "User").
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from imgfs.errors import Invalid, NotFound

ID_LARGEST = 2**32 - 2
"""The kernel uses 2^32 - 1 for "no user"."""
GROUPS_MAX = 65536
"""NGROUPS_MAX of the kernel."""


class User(msgspec.Struct, frozen=True):
    """User and group IDs for the kernel, and the home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Additional groups, ascending."""
    home: str = "/"


class _Account(msgspec.Struct, frozen=True):
    name: bytes
    uid: int
    gid: int
    home: str


class _Group(msgspec.Struct, frozen=True):
    name: bytes
    gid: int
    members: tuple[bytes, ...]


def resolve_user(text: str, passwd: bytes, group: bytes) -> User:
    """Resolve `user`, `uid`, `user:group`, `uid:gid` and so on. An empty text means root.

    A name wins over a number. A number need not be in passwd; the group is then 0 and the home directory `/`. Without a
    group, the user is in all groups that list the user as a member. Raises NotFound for an unknown name, and Invalid
    for a number out of range.
    """
    user, colon, wanted = text.partition(":")
    if colon and not wanted:
        raise Invalid(f"user {text[:80]!r}: expected a group after the colon")
    account = _account(user or "0", passwd)
    if wanted:
        return User(account.uid, _group(wanted, group), (), account.home)
    groups = {one.gid for one in _groups(group) if account.name and account.name in one.members}
    if len(groups) > GROUPS_MAX:
        raise Invalid(f"user {text[:80]!r}: is in {len(groups)} groups; the kernel accepts {GROUPS_MAX}")
    return User(account.uid, account.gid, tuple(sorted(groups - {account.gid})), account.home)


def _account(text: str, passwd: bytes) -> _Account:
    name, number = text.encode(errors="surrogateescape"), _number(text)
    numbered: _Account | None = None
    for one in _accounts(passwd):
        if one.name == name:
            return one
        if numbered is None and one.uid == number:
            numbered = one
    if numbered is not None:
        return numbered
    if number is None:
        raise NotFound(f"user {text[:80]!r}: is not in the image's /etc/passwd; give a number, or another with -u")
    return _Account(b"", number, 0, "/")


def _group(text: str, group: bytes) -> int:
    name, number = text.encode(errors="surrogateescape"), _number(text)
    for one in _groups(group):
        if one.name == name:
            return one.gid
    if number is None:
        raise NotFound(f"group {text[:80]!r}: is not in the image's /etc/group; give a number, or another with -u")
    return number


def _number(text: str) -> int | None:
    """Return the text as a number, or None if it is no number. Raises Invalid if the number is out of range."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > ID_LARGEST:
        raise Invalid(f"user {text[:80]!r}: expected a number up to {ID_LARGEST}")
    return int(text)


def _accounts(passwd: bytes) -> Iterator[_Account]:
    for fields in _lines(passwd):
        if len(fields) < 6:
            continue
        uid, gid = _field(fields[2]), _field(fields[3])
        if uid is not None and gid is not None:
            home = fields[5].decode(errors="surrogateescape")
            yield _Account(fields[0], uid, gid, home if home.startswith("/") else "/")


def _groups(group: bytes) -> Iterator[_Group]:
    for fields in _lines(group):
        gid = _field(fields[2]) if len(fields) > 2 else None
        if gid is not None:
            members = fields[3].split(b",") if len(fields) > 3 else []
            yield _Group(fields[0], gid, tuple(one.strip() for one in members))


def _lines(data: bytes) -> Iterator[list[bytes]]:
    for line in data.split(b"\n"):
        line = line.strip()
        if line and not line.startswith(b"#") and b"\0" not in line:
            yield line.split(b":")


def _field(text: bytes) -> int | None:
    if not text.isdigit() or len(text) > 10:
        return None
    return number if (number := int(text)) <= ID_LARGEST else None
