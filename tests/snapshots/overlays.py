"""Real overlays over directories, and the same merged tree computed from layers."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgfs.layers.tree import MergedNode, merge
from imgfs.layers.tree import walk as walk_merged
from imgfs.snapshots.export import export_layer
from imgfs.snapshots.upper import KERNEL, Dialect
from tests.layers.tars import walk
from tests.support.programs import run
from tests.support.trees import Node

OPTIONS = "redirect_dir=nofollow,metacopy=off,index=off"


@dataclass(frozen=True, slots=True)
class Overlay:
    """The directories of one overlay. The parent is `lower`."""

    lower: Path
    upper: Path
    work: Path
    rootfs: Path


def make_overlay(at: Path) -> Overlay:
    """Make the directories only, so that the test can fill the lower one before `mounted_overlay`."""
    made = Overlay(*(at / name for name in ("lower", "upper", "work", "rootfs")))
    for directory in (made.lower, made.upper, made.work, made.rootfs):
        directory.mkdir(parents=True)
        directory.chmod(0o755)
    return made


@contextmanager
def mounted_overlay(overlay: Overlay, *, program: str = "mount", options: str = OPTIONS) -> Iterator[Path]:
    """Mount with the kernel, or with fuse-overlayfs as `program`."""
    where = f"lowerdir={overlay.lower},upperdir={overlay.upper},workdir={overlay.work}"
    given = f"{where},{options}" if options else where
    if program == "mount":
        run("mount", "-t", "overlay", "overlay", "-o", given, overlay.rootfs)
    else:
        run(program, "-o", given, overlay.rootfs)
    try:
        yield overlay.rootfs
    finally:
        run("umount", overlay.rootfs)


def exported(upper: Path, dialect: Dialect = KERNEL) -> bytes:
    """Return the whole tar."""
    return b"".join(export_layer(upper, dialect))


def merged_tree(tars: Sequence[bytes]) -> dict[bytes, Node]:
    """Return the merged tree of `tars`, base first, in the form in which `snapshot_tree` returns a directory."""
    found = list(walk_merged(merge([walk(tar) for tar in tars]).root))
    names: dict[int, set[bytes]] = {}
    for path, node in found:
        names.setdefault(node.number, set()).add(path)
    return {path: _picture(node, names[node.number], tars) for path, node in found}


def _picture(node: MergedNode, names: set[bytes], tars: Sequence[bytes]) -> Node:
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
        stat.S_IFIFO: "fifo",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    kind = kinds[stat.S_IFMT(node.mode)]
    content = tars[node.layer][node.offset : node.offset + node.size]
    return Node(
        kind=kind,
        mode=stat.S_IMODE(node.mode),
        uid=node.uid,
        gid=node.gid,
        size=node.size,
        mtime_ns=node.mtime,
        target=node.link,
        device=node.rdev if kind.endswith("device") else None,
        xattrs=dict(node.xattrs),
        sha256=hashlib.sha256(content).hexdigest() if kind == "file" else "",
        links=frozenset(names) if len(names) > 1 else frozenset(),
    )


def fill_lower(root: Path) -> None:
    """Fill a parent with one file of every kind."""
    for name in ("kept", "gone-dir/deep/er", "opaque/old", "merged/sub", "renamed/sub", "became-file/x", "link-target"):
        (root / name).mkdir(parents=True)
    for name in ("kept/file", "gone-dir/deep/er/f", "opaque/old/f", "merged/sub/low", "renamed/sub/f", "link-target/f"):
        (root / name).write_bytes(f"lower {name}".encode())
    for name in ("gone", "chmodded", "chowned", "rewritten", "attributed", "became-dir", "moved", "touched"):
        (root / name).write_bytes(f"lower {name}".encode())
    (root / "big").write_bytes(os.urandom(300_000))
    os.link(root / "kept/file", root / "kept/other-name")
    os.symlink("kept/file", root / "symlink")
    os.symlink("link-target", root / "link-made-dir")
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(root / "attributed", "user.before", b"1")
    os.chmod(root, 0o711)


def change_everything(root: Path) -> None:
    """Make one change of every kind that programs make in a rootfs."""
    (root / "gone").unlink()
    run("rm", "-rf", root / "gone-dir", root / "opaque", root / "became-file", root / "became-dir")
    (root / "opaque").mkdir(mode=0o700)
    (root / "opaque/new").write_bytes(b"new")
    (root / "became-file").write_bytes(b"a file")
    (root / "became-dir/below").mkdir(parents=True)
    (root / "link-made-dir").unlink()
    (root / "link-made-dir").mkdir()
    (root / "link-made-dir/f").write_bytes(b"not the target's")
    (root / "link-target/f").unlink()
    os.chmod(root / "chmodded", 0o4755)
    os.chown(root / "chowned", 3_000_000_000, 12)
    (root / "rewritten").write_bytes(b"shorter")
    os.setxattr(root / "attributed", "user.after", b"\0\xff=\n2")
    os.removexattr(root / "attributed", "user.before")
    os.setxattr(root / "attributed", "user.empty", b"")
    os.rename(root / "moved", root / "kept/moved-here")
    run("mv", root / "renamed", root / "new-name")
    os.utime(root / "touched", ns=(1, 1_700_000_000_123_456_789))
    (root / "merged/sub/up").write_bytes(os.urandom(5000))
    (root / "merged/sub/low").unlink()
    _add_every_kind(root)
    os.chmod(root / "merged", 0o1777)
    os.chmod(root, 0o751)


def _add_every_kind(root: Path) -> None:
    (root / "new").mkdir()
    (root / "new/a").write_bytes(b"three names")
    os.link(root / "new/a", root / "new/b")
    os.link(root / "new/a", root / "z")
    os.symlink("a" * 150, root / "new/symlink")
    os.symlink("/absolute", root / "new/absolute")
    os.mkfifo(root / "new/fifo", 0o640)
    os.mknod(root / "new/block", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    os.mknod(root / "new/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "new" / ("long" * 60)).write_bytes(b"long name")
    (root / "new/ünï").write_bytes(b"")
    with open(os.fsencode(root) + b"/new/\xff\xfe raw", "wb") as file:
        file.write(b"no text")
    with (root / "new/sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"island")
    os.utime(root / "new/fifo", ns=(1, -1_500_000_000))
