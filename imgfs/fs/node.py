"""The base classes of all inodes: every request, with the errno of an inode that does not support it.

A node is a light, stateless handle for an object that another room owns. A lookup makes it, and it may be forgotten at
any time. Its inode number depends on its key only, so the number survives forget and remount.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import pyfuse3

from imgfs.errors import ImgfsError, NotFound, NotPermitted
from imgfs.filename import with_colons
from imgfs.fs.caller import Caller

ENDLESS = 10 * 365 * 86400.0
"""Cache timeout in seconds for what can never change."""

SOON = 1.0
"""Cache timeout in seconds for entries that change only by removal. It saves eight of twelve requests on a path
through a name.
"""

_CONTROL = 1 << 62
"""Set in the number of every inode outside views. Numbers of views are smaller (fs/snapshots/view.py)."""

Listing = Sequence[tuple[bytes, "Node"]]


class NoAttribute(ImgfsError):
    """The xattr does not exist."""

    errno = errno.ENODATA


class Stale(ImgfsError):
    """The daemon has just mounted something over the inode: the kernel walks the path again, into the mount."""

    errno = errno.ESTALE


class NotADirectory(ImgfsError):
    """A lookup in a file that is not a directory."""

    errno = errno.ENOTDIR


class Handle(Protocol):
    """An open file."""

    async def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Return up to `size` bytes from `offset`, fewer only at the end of the file."""
        ...

    async def close(self) -> None:
        """Release the file after the last descriptor is closed."""
        ...


def control_number(key: str) -> int:
    """Return the inode number of a node outside views."""
    hashed = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(hashed) & (_CONTROL - 1) | _CONTROL


def is_control(number: int) -> bool:
    """Whether the inode is outside views. Only such inodes have lookup counts."""
    return number >= _CONTROL or number == pyfuse3.ROOT_INODE


class Node:
    """One inode. Methods that a subclass does not override fail with the contract's errno."""

    __slots__ = ("number",)

    direct_io = False
    """Whether reads bypass the page cache, for content that changes under its name."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def attributes(self) -> pyfuse3.EntryAttributes:
        """Return the attributes that stat shows."""
        raise NotImplementedError

    async def listed(self) -> pyfuse3.EntryAttributes:
        """Return the attributes for readdir. Their timeout may be longer than that of `attributes`."""
        return await self.attributes()

    async def reached(self, caller: Caller) -> None:
        """Called when a caller walks to this inode or asks for its attributes. May mount over it and raise Stale."""

    def canonical(self, name: bytes) -> bytes:
        """Return the name of the child that a colon-free spelling stands for. Other names are returned unchanged."""
        return name

    def by_colon_free_name(self) -> Node:
        """Return the node for a lookup by the colon-free spelling.

        It is the same inode, except for links with another target.
        """
        return self

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        """Return the child `name`. Raises NotFound."""
        raise NotADirectory(f"{name!r}: the parent is no directory")

    async def entries(self, caller: Caller) -> Listing:
        """Return the children that readdir lists. Sends no request to a registry."""
        raise NotADirectory("not a directory")

    def held(self) -> AbstractContextManager[object]:
        """Return a context that is held while the directory is open."""
        return nullcontext()

    async def readlink(self, caller: Caller) -> bytes:
        """Return the target of a symbolic link."""
        raise NotPermitted("not a symbolic link")

    async def open(self, flags: int, caller: Caller) -> Handle:
        """Open the file with the access mode in `flags`."""
        raise NotPermitted("cannot be opened")

    async def change(self, fields: pyfuse3.SetattrFields, caller: Caller) -> None:
        """Change mode, owner or times."""
        raise self.refusal()

    async def truncate(self, size: int, handle: Handle | None, caller: Caller) -> None:
        """Set the size to `size`, through an open `handle` of this file if there is one."""
        raise self.refusal()

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        """Create a symbolic link in this directory."""
        raise self.refusal()

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        """Create a directory in this directory."""
        raise self.refusal()

    async def make_file(self, name: bytes, flags: int, caller: Caller) -> Node:
        """Create a regular file in this directory. The caller opens it with the access mode in `flags`."""
        raise self.refusal()

    async def unlink(self, name: bytes, caller: Caller) -> None:
        """Remove an entry that is not a directory."""
        raise self.refusal()

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        """Remove a directory. `name` may be a colon-free spelling: the kernel knows the entry by that name only."""
        raise self.refusal()

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        """Move the child `old` to `new` in the directory `target`. As in `rmdir`, `old` may be colon-free."""
        raise self.refusal()

    async def xattrs(self) -> dict[bytes, bytes]:
        """Return all xattrs and their values."""
        return {}

    async def xattr(self, name: bytes, caller: Caller) -> bytes | None:
        """Return the value of one xattr, or None if it does not exist."""
        return (await self.xattrs()).get(name)

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        """Remove an xattr."""
        raise self.refusal()

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Set an xattr."""
        raise self.refusal()

    def refusal(self) -> ImgfsError:
        """Return the error for a change that this node does not support."""
        return NotPermitted("belongs to imgfs and cannot be changed")


def missing(name: bytes) -> NotFound:
    """Return the error of a failed lookup."""
    return NotFound(f"{name!r}: no such file or directory")


class Shown:
    """Default attributes of nodes outside views: the daemon's user and group, and the time of its start."""

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
        """Return attributes. `mode` has type bits; `size`, and the allocated part `disk`, are bytes; `time` is in ns.

        The kernel may cache them for `keep` seconds.
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
    """A directory outside views."""

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
        """Return whether an entry has this very name, although it is also the colon-free spelling of another name."""
        return False

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        raise missing(name)


class FixedDirectory(Directory):
    """Lists `children` in their order. A subclass may have other children that are found by name only."""

    __slots__ = ("_children",)

    def __init__(self, key: str, shown: Shown, children: Mapping[bytes, Node]) -> None:
        super().__init__(key, shown)
        self._children = children

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name not in self._children:
            raise missing(name)
        return self._children[name]

    async def entries(self, caller: Caller) -> Listing:
        return list(self._children.items())


class Link(Node):
    """A symbolic link with a fixed target. `keep` is the cache timeout of its name in seconds."""

    __slots__ = ("_shown", "_target", "_time")

    keep = SOON

    def __init__(self, key: str, shown: Shown, target: str, time: int | None = None) -> None:
        # The kernel caches the target of a link with its inode, so another target needs another inode.
        super().__init__(control_number(f"{key}\0{target}"))
        self._shown = shown
        self._target = os.fsencode(target)
        self._time = time

    async def attributes(self) -> pyfuse3.EntryAttributes:
        size = len(self._target)
        return self._shown.entry(self.number, stat.S_IFLNK | 0o777, size=size, time=self._time, disk=0, keep=self.keep)

    async def readlink(self, caller: Caller) -> bytes:
        return self._target
