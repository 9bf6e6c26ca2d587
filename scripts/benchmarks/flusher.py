"""A disk with a slow flush: a file in a FUSE filesystem, stored in memory, served by its own process.

A loop device turns the flushes of a filesystem (REQ_OP_FLUSH, which jbd2 sends twice a commit) into fsyncs of the file
behind it. Here an fsync takes the given time, and nothing else takes time. Other requests wait during an fsync, as on a
disk that does not queue its flushes (SATA). The xattr `user.flushes` of the file is the number of flushes.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
import time

import pyfuse3
import trio

NAME = "disk"
FLUSHES = "user.flushes"
_FILE = pyfuse3.InodeT(2)


class FlushingFile(pyfuse3.Operations):
    def __init__(self, backing: str, seconds: float) -> None:
        super().__init__()
        self._file = os.open(backing, os.O_RDWR)
        self._seconds = seconds
        self._flushes = 0

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME.encode():
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_FILE, ctx)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        mode = stat.S_IFREG | 0o600 if inode == _FILE else stat.S_IFDIR | 0o700
        entry.st_mode, entry.st_nlink = pyfuse3.ModeT(mode), 1
        entry.st_size = os.fstat(self._file).st_size if inode == _FILE else 0
        entry.entry_timeout = entry.attr_timeout = 1e6
        return entry

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Set times, as the loop device's writes do. The times are ignored."""
        return await self.getattr(inode, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self._file, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return os.pwrite(self._file, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - as pyfuse3 calls it
        self._flushes += 1
        time.sleep(self._seconds)  # noqa: ASYNC251 - other requests must wait too

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        if inode != _FILE or name != FLUSHES.encode():
            raise pyfuse3.FUSEError(errno.ENODATA)
        return str(self._flushes).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mountpoint")
    parser.add_argument("backing")
    parser.add_argument("--flush", type=float, required=True, help="milliseconds")
    options = parser.parse_args()
    pyfuse3.init(FlushingFile(options.backing, options.flush / 1000), options.mountpoint, {"fsname=flusher"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
