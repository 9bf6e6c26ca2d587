"""The merged tree of an image: its layers applied in order, with the same result as unpacking them into a directory.

This module turns entries into nodes. It unpacks nothing, and no name is joined to a host path. The rules are those of
image-spec layer.md ("Applying Changesets"). Hostile layers (links that lead out, loops, duplicates, deep names) are
resolved inside the root or refused. Node numbers depend only on the layers, so they are the same after a restart.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from imgfs.errors import Malformed, TooLarge
from imgfs.layers.entry import Entry, EntryKind, Extent

NODES_MAX = 4_000_000
LINKS_MAX = 40
IMPLICIT_MAX = 100_000
"""Limit of the directories that no entry names. Without it a few kilobytes of deep names make millions of nodes."""
IMPLICIT_MODE = 0o755
"""Mode of a directory that has entries below it but no entry of its own. Its owner is 0:0, its time 0."""

_FORMAT = {
    EntryKind.REGULAR: stat.S_IFREG,
    EntryKind.DIRECTORY: stat.S_IFDIR,
    EntryKind.CHARACTER: stat.S_IFCHR,
    EntryKind.BLOCK: stat.S_IFBLK,
    EntryKind.FIFO: stat.S_IFIFO,
    EntryKind.SYMLINK: stat.S_IFLNK,
}


class MergedNode:
    """One inode of the merged tree. The parent's `children` hold the names; hard links are one node with many names.

    `mode` includes the type bits. `offset` and `extents` are positions in the tar of `layer`, counted from the base.
    Nodes have slots and share their numbers, because an image has a hundred thousand nodes. A node has no reference to
    its parent: without reference cycles a tree is freed with its last reference, not by a later garbage collection.
    """

    __slots__ = (
        "children",
        "extents",
        "gid",
        "layer",
        "link",
        "mode",
        "mtime",
        "nlink",
        "number",
        "offset",
        "rdev",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, mtime: int = 0) -> None:
        self.number = 0
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.size = 0
        self.nlink = 0
        self.layer = 0
        self.offset = 0
        self.rdev: tuple[int, int] = (0, 0)
        self.link = b""
        self.xattrs: tuple[tuple[bytes, bytes], ...] = ()
        self.extents: tuple[Extent, ...] | None = None
        self.children: dict[bytes, MergedNode] | None = None

    @property
    def is_directory(self) -> bool:
        """Whether this node is a directory."""
        return self.children is not None

    @property
    def is_symlink(self) -> bool:
        """Whether this node is a symbolic link."""
        return stat.S_ISLNK(self.mode)


class MergedTree:
    """All nodes of a merged image. `nodes[n].number == n + 1`; `nodes[0]` is the root."""

    def __init__(self, root: MergedNode) -> None:
        self.root = root
        self.nodes = _number(root)


def merge(layers: Iterable[Iterable[Entry]]) -> MergedTree:
    """Apply the entries of `layers`, base first. Each layer is iterated several times before the next one is requested.

    Raises Malformed (a file as parent, a loop of links, a hard link to a missing file or to a directory) or TooLarge.
    Time and memory are linear in the number of entries.
    """
    merging = _Merge()
    for position, entries in enumerate(layers):
        merging.apply(position, entries)
    return MergedTree(merging.root)


def changes(lower: Iterable[Iterable[Entry]], top: Iterable[Entry], position: int) -> MergedTree:
    """Return the changes of the layer `top`, which has `position` layers below it, in the form that overlayfs stores.

    A whiteout is a character device 0/0. An opaque directory has the xattr `trusted.overlay.opaque`. The `lower` layers
    are read only if `top` has hard links, whose targets may be lower files. Raises as `merge`.
    """
    merging = _Merge()
    if any(entry.kind is EntryKind.HARDLINK for entry in top):
        below = _Merge()
        for number, entries in enumerate(lower):
            below.apply(number, entries)
        merging.borrow(below, top)
    merging.apply(position, _Whitened(top))
    for entry in top:
        if entry.kind is EntryKind.OPAQUE:
            merging.mark_opaque(entry)
    return MergedTree(merging.root)


class _Whitened:
    """The entries of a layer, with its whiteouts as 0/0 devices before all other entries."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = entries

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._entries:
            if entry.kind is EntryKind.WHITEOUT:
                yield Entry(entry.path, EntryKind.CHARACTER)
        for entry in self._entries:
            if entry.kind not in (EntryKind.WHITEOUT, EntryKind.OPAQUE):
                yield entry


class _Merge:
    def __init__(self) -> None:
        self.root = _directory(IMPLICIT_MODE)
        self._layer = 0
        self._count = 0
        self._shared: dict[int, int] = {}
        self._last: tuple[bytes, MergedNode] | None = None
        self._replaced: set[MergedNode] = set()
        """Lower symbolic links that the current layer replaces with directories.

        Its whiteouts do not follow these links.
        """
        self._lower_targets: dict[bytes, MergedNode] = {}
        self._implicit = 0
        self._parents: dict[MergedNode, MergedNode] = {}
        """The parent of each directory, for `..` in targets of links."""

    def apply(self, layer: int, entries: Iterable[Entry]) -> None:
        """Apply one layer.

        Its whiteouts come first, wherever they are in the tar, because they hide only lower layers.
        """
        self._layer = layer
        if self.root.children and any(
            entry.kind is EntryKind.WHITEOUT or entry.kind is EntryKind.OPAQUE for entry in entries
        ):
            self._lower_targets = dict(self._targets_below(entries))
            self._replaced = set(self._links_made_directories(entries))
            for entry in entries:
                if entry.kind is EntryKind.WHITEOUT:
                    self._white_out(entry)
                elif entry.kind is EntryKind.OPAQUE:
                    self._make_opaque(entry)
            self._replaced.clear()
        for entry in entries:
            if entry.kind is EntryKind.HARDLINK:
                self._link(entry)
            elif entry.kind not in (EntryKind.WHITEOUT, EntryKind.OPAQUE):
                self._add(entry)
        self._lower_targets.clear()

    def borrow(self, below: _Merge, entries: Iterable[Entry]) -> None:
        """Let hard links of `entries` name files that only the merge `below` has."""
        self._lower_targets = dict(below._targets_below(entries))

    def mark_opaque(self, entry: Entry) -> None:
        """Mark a directory as opaque with the xattr of overlayfs."""
        directory = self._walk(entry.path, make=True)
        if directory is not None:
            directory.xattrs = (*directory.xattrs, (b"trusted.overlay.opaque", b"y"))

    def _targets_below(self, entries: Iterable[Entry]) -> Iterator[tuple[bytes, MergedNode]]:
        """Yield the lower targets of hard links.

        They are looked up before a whiteout of the same layer removes them.
        """
        for entry in entries:
            if entry.kind is EntryKind.HARDLINK and (target := self._look_up(entry.link)) is not None:
                yield entry.link, target

    def _look_up(self, path: bytes) -> MergedNode | None:
        parent, name = _split(path)
        directory = self._find(parent)
        return directory.children.get(name) if directory is not None and directory.children else None

    def _links_made_directories(self, entries: Iterable[Entry]) -> Iterator[MergedNode]:
        for entry in entries:
            if entry.kind is EntryKind.DIRECTORY:
                parent, name = _split(entry.path)
                directory = self._find(parent)
                present = (directory.children or {}).get(name) if directory is not None else None
                if present is not None and present.is_symlink:
                    yield present

    def _white_out(self, entry: Entry) -> None:
        self._charge()
        parent, name = _split(entry.path)
        directory = self._find(parent)
        if directory is not None and directory.children:
            self._last = None
            directory.children.pop(name, None)

    def _make_opaque(self, entry: Entry) -> None:
        self._charge()
        directory = self._find(entry.path)
        if directory is not None and directory.children:
            self._last = None
            directory.children.clear()

    def _link(self, entry: Entry) -> None:
        target = self._target(entry)
        parent, name = _split(entry.path)
        self._place(self._parent(parent, entry), name, target)

    def _target(self, entry: Entry) -> MergedNode:
        target = self._look_up(entry.link) or self._lower_targets.get(entry.link)
        if target is None:
            raise Malformed(f"layer {self._layer}: {entry.path!r} is a hard link to {entry.link!r}, which is not there")
        if target.is_directory:
            raise Malformed(f"layer {self._layer}: {entry.path!r} is a hard link to the directory {entry.link!r}")
        return target

    def _add(self, entry: Entry) -> None:
        if not entry.path:
            self._charge()
            self._describe(self.root, entry)
            return
        parent, name = _split(entry.path)
        directory = self._parent(parent, entry)
        assert directory.children is not None
        present = directory.children.get(name)
        if present is not None and present.is_directory and entry.kind is EntryKind.DIRECTORY:
            self._charge()
            self._describe(present, entry)
            return
        node = _directory(0) if entry.kind is EntryKind.DIRECTORY else MergedNode(0)
        self._describe(node, entry)
        self._place(directory, name, node)

    def _place(self, directory: MergedNode, name: bytes, node: MergedNode) -> None:
        assert directory.children is not None
        self._charge()
        replaced = directory.children.get(name)
        if replaced is not None and (replaced.is_directory or replaced.is_symlink):
            self._last = None
        directory.children[name] = node
        if node.children is not None:
            self._parents[node] = directory

    def _charge(self) -> None:
        """Count an entry. Entries that add no node count too, because they cost time."""
        self._count += 1
        if self._count > NODES_MAX:
            raise TooLarge(f"image: more than {NODES_MAX} entries")

    def _describe(self, node: MergedNode, entry: Entry) -> None:
        share = self._shared.setdefault
        mode = _FORMAT[entry.kind] | entry.mode
        node.mode = share(mode, mode)
        node.uid = share(entry.uid, entry.uid)
        node.gid = share(entry.gid, entry.gid)
        node.mtime = share(entry.mtime, entry.mtime)
        node.layer = self._layer
        node.size, node.offset, node.extents = entry.size, entry.offset, entry.extents
        node.link, node.xattrs = entry.link, entry.xattrs
        if entry.major or entry.minor:
            node.rdev = (entry.major, entry.minor)
        if entry.kind is EntryKind.SYMLINK:
            node.size = len(entry.link)

    def _parent(self, path: bytes, entry: Entry) -> MergedNode:
        """Return the directory of `entry`, and create it if it is missing. The last result is cached for neighbours."""
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        directory = self._walk(path, make=True)
        if directory is None:
            raise Malformed(f"layer {self._layer}: {entry.path!r}: a parent is no directory, or a loop of links")
        self._last = (path, directory)
        return directory

    def _make_implicit(self) -> MergedNode:
        self._implicit += 1
        if self._implicit > IMPLICIT_MAX:
            raise TooLarge(f"image: more than {IMPLICIT_MAX} directories that no entry names")
        return _directory(IMPLICIT_MODE)

    def _find(self, path: bytes) -> MergedNode | None:
        return self._walk(path, make=False)

    def _walk(self, path: bytes, *, make: bool) -> MergedNode | None:
        """Resolve `path` and its symbolic links inside the root.

        Returns None if a component is missing (with `make` it is created), if one is no directory, or for a loop.
        """
        pending = path.split(b"/")[::-1] if path else []
        here, links = self.root, 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                here = self._parents.get(here, self.root)
                continue
            assert here.children is not None
            child = here.children.get(name)
            if child is None:
                if not make:
                    return None
                child = self._make_implicit()
                self._place(here, name, child)
            if child.is_symlink:
                links += 1
                if links > LINKS_MAX or child in self._replaced:
                    return None
                if child.link.startswith(b"/"):
                    here = self.root
                pending += child.link.split(b"/")[::-1]
            elif child.is_directory:
                here = child
            else:
                return None
        return here


def _directory(mode: int) -> MergedNode:
    node = MergedNode(stat.S_IFDIR | mode)
    node.children = {}
    return node


def _split(path: bytes) -> tuple[bytes, bytes]:
    parent, _, name = path.rpartition(b"/")
    return parent, name


def _number(root: MergedNode) -> list[MergedNode]:
    """Number the nodes in depth-first order and count their links.

    The links of a node are its names; those of a directory also its `.` and the `..` of each subdirectory.
    """
    nodes: list[MergedNode] = []
    pending = [root]
    while pending:
        node = pending.pop()
        node.nlink += 1
        if node.number:
            continue
        nodes.append(node)
        node.number = len(nodes)
        if node.children is not None:
            node.nlink += 1 + sum(1 for child in node.children.values() if child.children is not None)
            pending.extend(reversed(node.children.values()))
    return nodes


def walk(node: MergedNode, path: bytes = b"") -> Iterator[tuple[bytes, MergedNode]]:
    """Yield every path from `node` downwards, `node` first, in depth-first order."""
    pending = [(path, node)]
    while pending:
        here, current = pending.pop()
        yield here, current
        for name, child in reversed((current.children or {}).items()):
            pending.append((here + b"/" + name if here else name, child))
