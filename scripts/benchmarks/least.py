"""The least cost of a filesystem on pyfuse3: a tree in memory that the kernel may cache without limit.

`python -m benchmarks.least TAR MOUNTPOINT`. The cost of reading it is the cost of pyfuse3. It waits for requests as
imgfs does.
"""

from __future__ import annotations

import errno
import signal
import stat
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from imgfs.fs.readiness import ask_before_sleeping

_KINDS = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK}
_FOREVER = 1e6
"""Seconds."""


@dataclass
class _Node:
    attributes: pyfuse3.EntryAttributes
    content: bytes = b""
    children: dict[bytes, _Node] = field(default_factory=dict)
    listing: list[tuple[bytes, _Node]] = field(default_factory=list)


class Least(pyfuse3.Operations):
    """The tree of a tar: directories, files and symbolic links."""

    def __init__(self, tar: Path) -> None:
        self._nodes: list[_Node] = []
        root = self._add(stat.S_IFDIR | 0o755)
        with tarfile.open(tar) as file:
            for member in file:
                self._place(root, file, member)
        for node in self._nodes:
            node.listing = list(node.children.items())

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        return self._node(inode).attributes

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        found = self._node(parent).children.get(name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return found.attributes

    async def readlink(self, inode: int, ctx: object) -> bytes:
        return self._node(inode).content

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._node(fh).listing
        for number in range(start, len(listing)):
            name, node = listing[number]
            if not pyfuse3.readdir_reply(token, name, node.attributes, number + 1):
                return

    async def releasedir(self, fh: int) -> None:
        pass

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._node(fh).content[offset : offset + size]

    async def release(self, fh: int) -> None:
        pass

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    def _node(self, inode: int) -> _Node:
        return self._nodes[inode - pyfuse3.ROOT_INODE]

    def _place(self, root: _Node, file: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        *above, name = [part.encode() for part in Path(member.name).parts] or [b""]
        here = root
        for part in above:
            here = here.children.get(part) or here.children.setdefault(part, self._add(stat.S_IFDIR | 0o755))
        content = b""
        if member.isreg() or member.islnk():
            taken = file.extractfile(member)
            content = taken.read() if taken else b""
        elif member.issym():
            content = member.linkname.encode()
        if name and name not in here.children:
            mode = _KINDS.get(member.type, stat.S_IFREG) | member.mode
            here.children[name] = self._add(mode, content)

    def _add(self, mode: int, content: bytes = b"") -> _Node:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(len(self._nodes) + pyfuse3.ROOT_INODE)
        attributes.st_mode = pyfuse3.ModeT(mode)
        attributes.st_size = len(content)
        attributes.entry_timeout = attributes.attr_timeout = _FOREVER
        node = _Node(attributes, content)
        self._nodes.append(node)
        return node


def main() -> None:
    """Serve until SIGTERM."""
    tar, mountpoint = sys.argv[1:]
    pyfuse3.init(Least(Path(tar)), mountpoint, {*pyfuse3.default_options, "fsname=least"})
    signal.signal(signal.SIGTERM, lambda *_: pyfuse3.terminate())
    ask_before_sleeping()
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
