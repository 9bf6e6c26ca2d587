"""What every inode can be asked, with the answer of an inode that does not know the question.

A node is a light, stateless name for something that another room owns: it is made on lookup and may be forgotten at any
time. Its inode number is a function of its key, so it is the same after forget and remount.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import pyfuse3

from imgfs.errors import ImgfsError, NotFound, NotPermitted
from imgfs.filename import with_colons
from imgfs.fs.caller import Caller

ENDLESS = 10 * 365 * 86400.0
"""Seconds that the kernel may keep what can never change."""

SOON = 1.0
"""Seconds that the kernel may keep what changes only when somebody removes it: a path through a name then costs four
trips to the daemon instead of twelve."""

_CONTROL = 1 << 62
"""Set in the number of every inode that is not part of a view; views count from below (fs/snapshots/view.py)."""

Listing = Sequence[tuple[bytes, "Node"]]


class NoAttribute(ImgfsError):
    """The xattr does not exist."""

    errno = errno.ENODATA


class Stale(ImgfsError):
    """Something was mounted over the inode just now: the kernel walks the path again, into the mount."""

    errno = errno.ESTALE


class NotADirectory(ImgfsError):
    """A lookup below something that is no directory."""

    errno = errno.ENOTDIR


class Handle(Protocol):
    """An open file."""

    async def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Up to `size` bytes from `offset`, short only at the end."""
        ...

    async def close(self) -> None:
        """The last user is gone."""
        ...


def control_number(key: str) -> int:
    """The inode number of a node outside of views."""
    hashed = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(hashed) & (_CONTROL - 1) | _CONTROL


def is_control(number: int) -> bool:
    """Whether the inode of that number is outside of views, where the kernel's counts have to be kept."""
    return number >= _CONTROL or number == pyfuse3.ROOT_INODE


class Node:
    """One inode. Methods that a kind does not override refuse with the contract's errno."""

    __slots__ = ("number",)

    direct_io = False
    """Whether reads of this file bypass the page cache: for content that changes under its name."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def attributes(self) -> pyfuse3.EntryAttributes:
        """What stat shows."""
        raise NotImplementedError

    async def listed(self) -> pyfuse3.EntryAttributes:
        """What readdir tells of it. A list may be believed for longer than who asked for this one alone."""
        return await self.attributes()

    async def reached(self, caller: Caller) -> None:
        """Somebody walks to this inode or asks for its attributes: the moment to mount over it, and raise Stale."""

    def canonical(self, name: bytes) -> bytes:
        """Return the name of the child that a colon-free spelling stands for; every other name is returned as it is."""
        return name

    def by_colon_free_name(self) -> Node:
        """Return the node for a lookup by the colon-free spelling: the same inode, unless a link leads elsewhere."""
        return self

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        """The child of that name; raises NotFound."""
        raise NotADirectory(f"{name!r}: the parent is no directory")

    async def entries(self, caller: Caller) -> Listing:
        """What readdir shows, without asking any registry."""
        raise NotADirectory("not a directory")

    def held(self) -> AbstractContextManager[object]:
        """What being opened as a directory means for it, until that is closed."""
        return nullcontext()

    async def readlink(self, caller: Caller) -> bytes:
        """The target of a symbolic link."""
        raise NotPermitted("not a symbolic link")

    async def open(self, flags: int, caller: Caller) -> Handle:
        """Open for the access that `flags` tells."""
        raise NotPermitted("cannot be opened")

    async def change(self, fields: pyfuse3.SetattrFields, caller: Caller) -> None:
        """chmod, chown, truncate, touch."""
        raise self.refusal()

    async def truncate(self, size: int, handle: Handle | None, caller: Caller) -> None:
        """Cut or grow to `size`, through an open `handle` of this file if there is one."""
        raise self.refusal()

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        """Make a symbolic link in this directory."""
        raise self.refusal()

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        """Make a directory in this directory."""
        raise self.refusal()

    async def make_file(self, name: bytes, flags: int, caller: Caller) -> Node:
        """Make a regular file in this directory, which will be opened for the access that `flags` tells."""
        raise self.refusal()

    async def unlink(self, name: bytes, caller: Caller) -> None:
        """Remove a name that is no directory."""
        raise self.refusal()

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        """Remove a directory. `name` may be a colon-free spelling: the kernel knows the entry by that name only."""
        raise self.refusal()

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        """Move the child `old` to be `new` in the directory `target`. As in `rmdir`, `old` may be colon-free."""
        raise self.refusal()

    async def xattrs(self) -> dict[bytes, bytes]:
        """All xattrs and their values."""
        return {}

    async def xattr(self, name: bytes, caller: Caller) -> bytes | None:
        """One xattr; None if there is none of that name."""
        return (await self.xattrs()).get(name)

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        """Remove an xattr."""
        raise self.refusal()

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Set an xattr."""
        raise self.refusal()

    def refusal(self) -> ImgfsError:
        """Why this node is not changed."""
        return NotPermitted("imgfs keeps this; it cannot be changed here")


def missing(name: bytes) -> NotFound:
    """The error of a lookup that found nothing."""
    return NotFound(f"{name!r}: no such file or directory")


class Shown:
    """How control nodes look: owned by whoever runs the daemon, times of its start where there is no better."""

    __slots__ = ("gid", "started", "uid")

    def __init__(self, uid: int, gid: int, started: int) -> None:
        self.uid = uid
        self.gid = gid
        self.started = started

    def entry(
        self,
        number: int,
        mode: int,
        *,
        size: int = 0,
        time: int | None = None,
        keep: float = 0.0,
        disk: int | None = None,
    ) -> pyfuse3.EntryAttributes:
        """Attributes: `mode` with type bits, `size` bytes of which `disk` are allocated, `time` in ns.

        The kernel may keep them for `keep` seconds.
        """
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(number)
        entry.st_mode = pyfuse3.ModeT(mode)
        entry.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        entry.st_uid, entry.st_gid = self.uid, self.gid
        entry.st_size = size
        entry.st_blksize = 4096
        entry.st_blocks = ((size if disk is None else disk) + 511) // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self.started if time is None else time
        entry.entry_timeout = entry.attr_timeout = keep
        return entry


class Directory(Node):
    """A directory outside of views."""

    __slots__ = ("_shown",)

    mode = 0o755

    def __init__(self, key: str, shown: Shown) -> None:
        super().__init__(control_number(key))
        self._shown = shown

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._shown.entry(self.number, stat.S_IFDIR | self.mode, keep=SOON)

    def canonical(self, name: bytes) -> bytes:
        text = os.fsdecode(name)
        meant = with_colons(text)
        return name if meant == text or self.has_literally(text) else os.fsencode(meant)

    def has_literally(self, name: str) -> bool:
        """Return whether a child has this very name, which is also the colon-free spelling of another name."""
        return False

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        raise missing(name)


class Link(Node):
    """A symbolic link whose target is known when it is made. `keep`: seconds that the kernel may trust its name."""

    __slots__ = ("_shown", "_target", "_time")

    keep = SOON

    def __init__(self, key: str, shown: Shown, target: str, time: int | None = None) -> None:
        # The kernel keeps the target of a link with its inode, so another target is another inode.
        super().__init__(control_number(f"{key}\0{target}"))
        self._shown = shown
        self._target = os.fsencode(target)
        self._time = time

    async def attributes(self) -> pyfuse3.EntryAttributes:
        size = len(self._target)
        return self._shown.entry(self.number, stat.S_IFLNK | 0o777, size=size, time=self._time, disk=0, keep=self.keep)

    async def readlink(self, caller: Caller) -> bytes:
        return self._target
