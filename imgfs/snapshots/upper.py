"""An overlay's upper directory, read as the entries of a layer (Documentation/filesystems/overlayfs.rst).

There are two dialects: the kernel's for root (0/0 character devices, `trusted.overlay.opaque`), and that of users who
may not make devices (`user.overlay.*` of the kernel in a user namespace; `.wh.` files and attributes of
fuse-overlayfs).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import Unsupported
from imgfs.layers.entry import Entry, EntryKind
from imgfs.layers.paths import DEPTH_LIMIT, NAME_LIMIT, PATH_LIMIT
from imgfs.layers.whiteouts import whiteout
from imgfs.snapshots.walk import Found, walk

_MARK = b".wh."
_OWN = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "security.selinux")
"""Attributes that belong to the overlay or to this host, and not to the files."""

_KINDS = {
    stat.S_IFREG: EntryKind.REGULAR,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFCHR: EntryKind.CHARACTER,
    stat.S_IFBLK: EntryKind.BLOCK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFLNK: EntryKind.SYMLINK,
}
_NODES = (EntryKind.CHARACTER, EntryKind.BLOCK)

_Xattrs = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How changes are written: the prefixes of the overlay's attributes, and whether `.wh.` files are whiteouts."""

    prefixes: tuple[str, ...]
    has_marked_files: bool

    def says(self, xattrs: _Xattrs, what: str, value: bytes | None = None) -> bool:
        """Whether the overlay set its attribute `what` (with that value) on a file."""
        found = [xattrs[prefix + what] for prefix in self.prefixes if prefix + what in xattrs]
        return bool(found) and (value is None or value in found)


KERNEL = Dialect(("trusted.overlay.",), has_marked_files=False)
ROOTLESS = Dialect(("user.overlay.", "user.fuseoverlayfs.", "trusted.overlay."), has_marked_files=True)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry with `offset` 0, and the path of its bytes, which is valid until the next change is asked for."""

    entry: Entry
    place: bytes


def read_upper(upper: Path, dialect: Dialect = KERNEL) -> Iterator[Change]:
    """Yield the changes in a reproducible order: parents first, whiteouts before the other entries of a directory.
    Blocks.

    Whiteouts have no attributes, owners are numbers, sockets are left out. The first name of an inode is the file,
    later names are hard links. Raises OSError, and Unsupported for changes that no layer can express: redirects and
    metacopies (from an overlay with other options), names that look like whiteouts, paths that are too long.
    """
    reading = _Reading(dialect)
    for found in walk(upper, reading.order):
        yield from reading.changes(found)


class _Reading:
    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._names: dict[tuple[int, int], bytes] = {}
        """The first name of every inode that has several."""
        self._opaque = b""
        """The last directory with the opaque attribute, with a slash. A marked file in it is a duplicate and is
        skipped."""

    def order(self, found: Found) -> tuple[bool, bytes]:
        """Sort whiteouts first, then by name: a reader that applies entry by entry must not hide what it has just
        made."""
        return not (_is_whiteout_device(found) or self._is_marked(found)), found.path

    def changes(self, found: Found) -> Iterator[Change]:
        """Yield the entries for one file."""
        if _is_whiteout_device(found):
            if not self._is_marked(found):  # fuse-overlayfs hides what it takes for a marked file of a lower directory
                yield _change(Entry(found.path, EntryKind.WHITEOUT), found)
        elif self._is_marked(found):
            yield from self._marked(found)
        elif not stat.S_ISSOCK(found.status.st_mode):
            yield from self._file(found)

    def _is_marked(self, found: Found) -> bool:
        return self._dialect.has_marked_files and found.name.startswith(_MARK)

    def _marked(self, found: Found) -> Iterator[Change]:
        entry = whiteout(found.path)
        if entry is None or (entry.kind is EntryKind.OPAQUE and entry.path + b"/" == self._opaque):
            return
        yield _change(entry, found)

    def _file(self, found: Found) -> Iterator[Change]:
        xattrs = _xattrs(found.place)
        if self._dialect.says(xattrs, "whiteout"):
            yield _change(Entry(found.path, EntryKind.WHITEOUT), found)
            return
        for what in ("redirect", "metacopy", "override_stat"):
            if self._dialect.says(xattrs, what):
                raise Unsupported(f"{_shown(found.path)}: overlay attribute {what!r}; mount with it turned off")
        yield _change(_entry(found, xattrs, self._first_name(found)), found)
        if stat.S_ISDIR(found.status.st_mode) and self._dialect.says(xattrs, "opaque", b"y"):
            self._opaque = found.path + b"/"
            yield _change(Entry(found.path, EntryKind.OPAQUE), found)

    def _first_name(self, found: Found) -> bytes | None:
        """Return the first path of the inode, or None if this is the first."""
        status = found.status
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode):
            return None
        first = self._names.setdefault((status.st_dev, status.st_ino), found.path)
        return first if first != found.path else None


def _is_whiteout_device(found: Found) -> bool:
    return stat.S_ISCHR(found.status.st_mode) and found.status.st_rdev == 0


def _change(entry: Entry, found: Found) -> Change:
    """Return the change for one file. Raises Unsupported if no layer can contain its name or path."""
    name, room = found.name, NAME_LIMIT
    if entry.kind is EntryKind.WHITEOUT:
        name, room = entry.path.rpartition(b"/")[2], NAME_LIMIT - len(_MARK)
    if entry.kind is not EntryKind.OPAQUE and name.startswith(_MARK):
        raise Unsupported(f"{_shown(found.path)}: readers of a layer take it for a whiteout; rename it")
    if len(name) > room:
        raise Unsupported(f"{_shown(found.path)}: was removed, but its name is too long for a whiteout of a layer")
    if len(found.path) > PATH_LIMIT or found.path.count(b"/") >= DEPTH_LIMIT:
        raise Unsupported(f"{_shown(found.path)}: is longer than {PATH_LIMIT} bytes or {DEPTH_LIMIT} components")
    return Change(entry, found.place)


def _entry(found: Found, xattrs: _Xattrs, first: bytes | None) -> Entry:
    """Make the entry of lstat(2). Hard links have all attributes too, because containerd sets them for each name."""
    status = found.status
    kind = _KINDS[stat.S_IFMT(status.st_mode)] if first is None else EntryKind.HARDLINK
    return Entry(
        found.path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size=status.st_size if kind is EntryKind.REGULAR else 0,
        link=os.readlink(found.place) if kind is EntryKind.SYMLINK else first or b"",
        major=os.major(status.st_rdev) if kind in _NODES else 0,
        minor=os.minor(status.st_rdev) if kind in _NODES else 0,
        xattrs=tuple((os.fsencode(name), xattrs[name]) for name in sorted(xattrs) if not name.startswith(_OWN)),
    )


def _xattrs(place: bytes) -> _Xattrs:
    names = os.listxattr(place, follow_symlinks=False)
    return {name: os.getxattr(place, name, follow_symlinks=False) for name in names}


def _shown(path: bytes) -> str:
    return repr(path[-200:])
