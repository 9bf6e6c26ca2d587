"""Writes an image with blocks of 4096 bytes, which is what erofs-utils can read; run as a program of its own.

The image is otherwise the same: the block size is a constant of the format module, which is changed before it is used.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from imgfs.erofs import format as numbers

_PAGE_BITS = 12


def main(directory: Path) -> None:
    """Put `image.erofs`, its devices, and the contents of its files as `files/<name>` into `directory`."""
    numbers.BLOCK_BITS, numbers.BLOCK = _PAGE_BITS, 1 << _PAGE_BITS
    numbers.CHUNK_BITS_MAX = _PAGE_BITS + 31
    from imgfs.erofs.writer import build
    from tests.erofs import scene

    data = scene.Data(2)
    shared = data.file(b"of two names", nlink=2)
    capability = (b"security.capability", bytes.fromhex("0000000201000000000000000000000000000000"))
    names = {b"n%04d" % number: scene.node(stat.S_IFREG | 0o600) for number in range(1500)}
    root = scene.tree(
        {
            b"small": data.file(b"x"),
            b"page": data.file(os.urandom(4096)),
            b"large": data.file(os.urandom(300_001), 1),
            b"sparse": data.sparse(1 << 20, [(0, b"a" * 4096), (1 << 19, b"b" * 4096)]),
            b"link": scene.symlink(b"small"),
            b"long link": scene.symlink(b"y" * 4000),
            b"one": shared,
            b"directory": scene.directory({b"two": shared, **names}),
            b"fifo": scene.node(stat.S_IFIFO | 0o644),
            b"device": scene.node(stat.S_IFCHR | 0o600, rdev=(1, 3)),
            b"socket": scene.node(stat.S_IFSOCK | 0o600),
            b"capable": data.file(b"program", xattrs=((b"user.a", b"1"), capability)),
            b"labelled": data.file(b"text", xattrs=((b"user.a", b"1"),)),
        }
    )
    (directory / "image.erofs").write_bytes(build(root, data.sizes(), data.read_at))
    data.write(directory)
    (directory / "files").mkdir()
    for name, node in (root.children or {}).items():
        if stat.S_ISREG(node.mode):
            (directory / "files" / os.fsdecode(name)).write_bytes(data.read(node))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
