"""Records a directory tree, and lists the differences between two recordings.

It defines which attributes make two root filesystems equal: all that lstat(2), readlink(2), listxattr(2) and read(2)
show. Each ignored attribute is an `Ignore` with its reason.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One path of a tree. Files have `size` and `sha256`, links have `size`. `links` is empty for one name."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    device: tuple[int, int] | None
    xattrs: dict[bytes, bytes]
    sha256: str
    links: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Ignore:
    """An ignored attribute, the reason, and its scope: at `paths` (everywhere if None) for `kind` (any if None).

    `attribute` is a field of Node, `xattrs:NAME` for one extended attribute, or `path` for a whole path.
    """

    attribute: str
    reason: str
    paths: frozenset[bytes] | None = None
    kind: str | None = None

    def covers(self, path: bytes, kind: str) -> bool:
        """Return whether this covers `path`."""
        return (self.paths is None or path in self.paths) and (self.kind is None or self.kind == kind)


def directory_mtimes(reason: str, paths: Iterable[bytes] | None = None) -> Ignore:
    """Ignore the mtimes of directories: those at `paths`, or all."""
    return Ignore("mtime_ns", reason, None if paths is None else frozenset(paths), "directory")


def xattr(name: str, reason: str) -> Ignore:
    """Ignore one extended attribute everywhere."""
    return Ignore(f"xattrs:{name}", reason)


def snapshot_tree(root: bytes | str | Path) -> dict[bytes, Node]:
    """Record every path below `root`, and b"" for `root` itself. Does not follow links. Reads every file."""
    top = os.fsencode(root)
    names: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    inodes: dict[bytes, tuple[int, int]] = {}
    nodes: dict[bytes, Node] = {}
    for path in _walk(top, b""):
        found = os.lstat(_join(top, path))
        nodes[path] = _node(_join(top, path), found)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            inodes[path] = (found.st_dev, found.st_ino)
            names[inodes[path]].add(path)
    for path, inode in inodes.items():
        if len(names[inode]) > 1:
            nodes[path] = replace(nodes[path], links=frozenset(names[inode]))
    return nodes


def compare_trees(expected: dict[bytes, Node], actual: dict[bytes, Node], ignore: Sequence[Ignore] = ()) -> list[str]:
    """Return one line per difference, sorted by path; empty if the trees are equal."""
    differences: list[str] = []
    for path in sorted(expected.keys() | actual.keys()):
        differences += _compare(path, expected.get(path), actual.get(path), ignore)
    return differences


def _walk(top: bytes, path: bytes) -> Iterator[bytes]:
    yield path
    if stat.S_ISDIR(os.lstat(_join(top, path)).st_mode):
        for name in sorted(os.listdir(_join(top, path))):
            yield from _walk(top, path + b"/" + name if path else name)


def _join(top: bytes, path: bytes) -> bytes:
    return top + b"/" + path if path else top


def _node(path: bytes, found: os.stat_result) -> Node:
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    device = (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind.endswith("device") else None
    return Node(
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if kind in {"file", "symlink"} else 0,
        mtime_ns=found.st_mtime_ns,
        target=os.readlink(path) if kind == "symlink" else b"",
        device=device,
        xattrs=_xattrs(path),
        sha256=_sha256(path) if kind == "file" else "",
        links=frozenset(),
    )


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def _sha256(path: bytes) -> str:
    running = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            running.update(chunk)
    return running.hexdigest()


def _compare(path: bytes, expected: Node | None, actual: Node | None, ignore: Sequence[Ignore]) -> list[str]:
    kind = (expected or actual or _absurd(path)).kind
    about = [one for one in ignore if one.covers(path, kind)]
    if any(one.attribute == "path" for one in about):
        return []
    if expected is None or actual is None:
        return [f"{path!r}: {'missing' if actual is None else 'unexpected'} {kind}"]
    if expected.kind != actual.kind:
        return [f"{path!r}: kind: expected {expected.kind}, got {actual.kind}"]
    expected, actual = (_without(node, about) for node in (expected, actual))
    return [
        f"{path!r}: {name}: expected {show(getattr(expected, name))}, got {show(getattr(actual, name))}"
        for name, show in _SHOWN.items()
        if getattr(expected, name) != getattr(actual, name)
    ]


def _absurd(path: bytes) -> Node:
    raise AssertionError(f"{path!r}: in neither tree")


def _without(node: Node, about: Sequence[Ignore]) -> Node:
    for one in about:
        attribute, _, name = one.attribute.partition(":")
        if name:
            kept = {key: value for key, value in node.xattrs.items() if key != os.fsencode(name)}
            node = replace(node, xattrs=kept)
        else:
            node = replace(node, **{attribute: _BLANK[attribute]})
    return node


def _names(links: frozenset[bytes]) -> str:
    return repr(sorted(links))


_SHOWN: dict[str, Callable[[Any], str]] = {one.name: repr for one in fields(Node)} | {"mode": oct, "links": _names}
_BLANK: dict[str, Any] = {
    "mode": 0,
    "uid": 0,
    "gid": 0,
    "size": 0,
    "mtime_ns": 0,
    "target": b"",
    "device": None,
    "xattrs": {},
    "sha256": "",
    "links": frozenset[bytes](),
}
