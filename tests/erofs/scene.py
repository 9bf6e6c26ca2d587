"""Trees with file data on devices, mounts of their images, and the expected content of a mount."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from imgfs.erofs.inode import DataDevice
from imgfs.erofs.writer import build
from imgfs.kernel.erofs import detached_erofs
from imgfs.kernel.mounts import mount_at, unmount
from imgfs.layers.entry import Extent
from imgfs.layers.tree import MergedNode, MergedTree, walk
from tests.support import trees

BLOCK = 512
MTIME = 1_700_000_000_123_456_789
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}


class Data:
    """The devices. `add` appends content at a block boundary, with `gap` bytes before and after it."""

    def __init__(self, devices: int = 1, gap: bytes = b"\xff" * BLOCK) -> None:
        self.devices = [bytearray(gap) for _ in range(devices)]
        self._gap = gap

    def add(self, content: bytes, device: int = 0) -> int:
        """Append content, padded with zeros to a block as in a tar. Returns its offset."""
        room = self.devices[device]
        offset = len(room)
        room += content
        room += bytes(-len(room) % BLOCK) + self._gap
        return offset

    def file(self, content: bytes, device: int = 0, **facts: object) -> MergedNode:
        """A regular file with its content on a device."""
        offset = self.add(content, device)
        return node(stat.S_IFREG | 0o644, size=len(content), layer=device, offset=offset, **facts)

    def sparse(self, size: int, pieces: Sequence[tuple[int, bytes]]) -> MergedNode:
        """A sparse file whose pieces (position, data) lie packed, as in a tar."""
        offset = self.add(b"".join(data for _, data in pieces))
        extents: list[Extent] = []
        for position, data in pieces:
            extents.append(Extent(position, offset, len(data)))
            offset += len(data)
        return node(stat.S_IFREG | 0o600, size=size, extents=tuple(extents))

    def read(self, file: MergedNode) -> bytes:
        """The content of a file, as its attributes say."""
        if file.extents is None:
            return bytes(self.devices[file.layer][file.offset : file.offset + file.size]) if file.size else b""
        content = bytearray(file.size)
        for extent in file.extents:
            piece = self.devices[file.layer][extent.offset : extent.offset + extent.length]
            content[extent.position : extent.position + extent.length] = piece
        return bytes(content)

    def read_at(self, device: int, offset: int, length: int) -> bytes:
        """Bytes of a device."""
        return bytes(self.devices[device][offset : offset + length])

    def sizes(self) -> list[DataDevice]:
        """Return the devices in the form that the writer takes."""
        return [DataDevice(len(device), b"device %d" % number) for number, device in enumerate(self.devices)]

    def write(self, directory: Path) -> list[Path]:
        """Put the devices into files."""
        paths = [directory / f"device-{number}" for number in range(len(self.devices))]
        for path, device in zip(paths, self.devices, strict=True):
            path.write_bytes(device)
        return paths


def node(mode: int, **facts: object) -> MergedNode:
    """Return a node with this mode, which includes the type bits, and with the given attributes."""
    made = MergedNode(mode, mtime=MTIME)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def symlink(target: bytes, **facts: object) -> MergedNode:
    """A symbolic link."""
    return node(stat.S_IFLNK | 0o777, link=target, size=len(target), **facts)


def directory(children: Mapping[bytes, MergedNode], **facts: object) -> MergedNode:
    """A directory of `children`."""
    return node(stat.S_IFDIR | 0o755, children=dict(children), **facts)


def tree(children: Mapping[bytes, MergedNode], **facts: object) -> MergedNode:
    """A root with everything below it numbered and its links counted."""
    return MergedTree(directory(children, **facts)).root


@contextmanager
def mounted(image: bytes | bytearray, devices: Sequence[Path], directory: Path) -> Generator[Path]:
    """Mount the image below `directory` for the duration of the context."""
    path, target = directory / "image.erofs", directory / "mnt"
    path.write_bytes(image)
    target.mkdir(exist_ok=True)
    try:
        with detached_erofs(path, devices, trusted=True) as mount:
            mount.attach(str(target))
        yield target
    finally:
        while mount_at(str(target)):
            unmount(str(target))


def expected(root: MergedNode, data: Data) -> dict[bytes, trees.Node]:
    """Return what trees.snapshot_tree must return for a mount of `root`."""
    names: dict[int, set[bytes]] = defaultdict(set)
    for path, one in walk(root):
        names[id(one)].add(path)
    return {path: _picture(one, data, names[id(one)]) for path, one in walk(root)}


def differences(root: MergedNode, data: Data, scratch: Path) -> list[str]:
    """Return the differences between a mount of the tree and the tree, in attributes and content."""
    with mounted(build(root, data.sizes(), data.read_at), data.write(scratch), scratch) as mount:
        return trees.compare_trees(expected(root, data), trees.snapshot_tree(mount)) + _wrong_links(root, mount)


def _picture(one: MergedNode, data: Data, names: set[bytes]) -> trees.Node:
    kind = KINDS[stat.S_IFMT(one.mode)]
    return trees.Node(
        kind=kind,
        mode=stat.S_IMODE(one.mode),
        uid=one.uid,
        gid=one.gid,
        size=one.size if kind in ("file", "symlink") else 0,
        mtime_ns=one.mtime,
        target=one.link,
        device=one.rdev if kind.endswith("device") else None,
        xattrs=dict(one.xattrs),
        sha256=hashlib.sha256(data.read(one)).hexdigest() if kind == "file" else "",
        links=frozenset(names if len(names) > 1 else ()),
    )


def _wrong_links(root: MergedNode, mount: Path) -> list[str]:
    found = ((path, one, os.lstat(os.path.join(os.fsencode(mount), path))) for path, one in walk(root))
    return [
        f"{path!r}: {seen.st_nlink} links, not {one.nlink}" for path, one, seen in found if seen.st_nlink != one.nlink
    ]
