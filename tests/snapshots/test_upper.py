"""The markers in an upper directory, made by hand: the change that each means, and refused ones."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from imgfs.errors import Busy, StorageFailed, Unsupported
from imgfs.layers.entry import EntryKind
from imgfs.snapshots.directories import remove_tree
from imgfs.snapshots.export import PIECE, export_layer
from imgfs.snapshots.upper import KERNEL, ROOTLESS, Dialect, read_upper
from imgfs.snapshots.walk import walk
from tests.layers.tars import content
from tests.layers.tars import walk as walk_tar

from .overlays import exported


def found(upper: Path, dialect: Dialect = KERNEL) -> list[tuple[bytes, EntryKind]]:
    return [(change.entry.path, change.entry.kind) for change in read_upper(upper, dialect)]


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_whiteouts_come_before_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").touch()
    whiteout(tmp_path / "z")
    whiteout(tmp_path / "b/c")
    os.setxattr(tmp_path / "b", "trusted.overlay.opaque", b"y")
    assert found(tmp_path) == [
        (b"", EntryKind.DIRECTORY),
        (b"z", EntryKind.WHITEOUT),
        (b"a", EntryKind.REGULAR),
        (b"b", EntryKind.DIRECTORY),
        (b"b", EntryKind.OPAQUE),
        (b"b/c", EntryKind.WHITEOUT),
    ]


def test_whiteouts_that_share_an_inode_are_all_whiteouts(tmp_path: Path) -> None:
    whiteout(tmp_path / "a")
    os.link(tmp_path / "a", tmp_path / "b")
    assert found(tmp_path)[1:] == [(b"a", EntryKind.WHITEOUT), (b"b", EntryKind.WHITEOUT)]


@pytest.mark.parametrize("value", [b"x", b"n", b""])
def test_only_the_value_y_means_opaque(tmp_path: Path, value: bytes) -> None:
    os.setxattr(tmp_path, "trusted.overlay.opaque", value)
    assert found(tmp_path) == [(b"", EntryKind.DIRECTORY)]


def test_whiteouts_of_newer_kernels_are_empty_files_with_an_attribute(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.setxattr(tmp_path / "a", "trusted.overlay.whiteout", b"")
    os.setxattr(tmp_path, "trusted.overlay.opaque", b"x")
    assert found(tmp_path) == [(b"", EntryKind.DIRECTORY), (b"a", EntryKind.WHITEOUT)]


def test_marked_files_are_whiteouts_in_the_rootless_dialect_only(tmp_path: Path) -> None:
    for name in ("d", ".wh.e"):
        (tmp_path / name).mkdir() if name == "d" else (tmp_path / name).touch()
    for name in (".wh..wh..opq", ".wh.f", ".wh..wh.plnk"):
        (tmp_path / "d" / name).touch()
    os.setxattr(tmp_path / "d", "user.fuseoverlayfs.opaque", b"y")
    assert found(tmp_path, ROOTLESS) == [
        (b"", EntryKind.DIRECTORY),
        (b"e", EntryKind.WHITEOUT),
        (b"d", EntryKind.DIRECTORY),
        (b"d", EntryKind.OPAQUE),
        (b"d/f", EntryKind.WHITEOUT),
    ]
    with pytest.raises(Unsupported, match="take it for a whiteout"):
        found(tmp_path)


def test_an_opaque_mark_alone_counts_too(tmp_path: Path) -> None:
    (tmp_path / ".wh..wh..opq").touch()
    assert found(tmp_path, ROOTLESS) == [(b"", EntryKind.DIRECTORY), (b"", EntryKind.OPAQUE)]
    assert walk_tar(exported(tmp_path, ROOTLESS))[1].kind is EntryKind.OPAQUE


def test_sockets_are_left_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "s"))
        assert found(tmp_path) == [(b"", EntryKind.DIRECTORY)]


def test_names_too_long_for_a_whiteout_are_refused(tmp_path: Path) -> None:
    whiteout(tmp_path / ("n" * 251))
    assert walk_tar(exported(tmp_path))[1].kind is EntryKind.WHITEOUT
    whiteout(tmp_path / ("n" * 252))
    with pytest.raises(Unsupported, match="too long for a whiteout"):
        found(tmp_path)


def test_attribute_names_that_pax_cannot_encode_are_refused(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "user.a=b", b"")
    with pytest.raises(Unsupported, match="name with ="):
        exported(tmp_path)


def test_trees_deeper_than_a_layer_may_be_are_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1025):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = open_files()
    try:
        with pytest.raises(Unsupported, match="1024 components"):
            found(tmp_path)
        assert open_files() == before
    finally:
        remove_tree(tmp_path / "d")  # the path is too deep for the removal by pytest


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    (tmp_path / "upper").mkdir()
    os.symlink("../outside", tmp_path / "upper/link")
    os.symlink("../outside/secret", tmp_path / "upper/file")
    assert b"secret" not in exported(tmp_path / "upper").replace(b"outside/secret", b"")


def test_a_file_that_changes_during_the_export_is_busy(tmp_path: Path) -> None:
    for size in (0, 3 * PIECE, 4 * PIECE):
        (tmp_path / "a").write_bytes(bytes(3 * PIECE))
        os.utime(tmp_path / "a", (0, 0))
        pieces = export_layer(tmp_path)
        next(pieces)
        os.truncate(tmp_path / "a", size)
        with pytest.raises(Busy, match="changed during the export"):
            list(pieces)


def test_a_file_that_vanishes_during_the_export_is_busy(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 * PIECE))
    (tmp_path / "b").write_bytes(b"b")
    pieces = export_layer(tmp_path)
    next(pieces)
    (tmp_path / "b").unlink()
    with pytest.raises(Busy, match="removed during the export"):
        list(pieces)


def test_closing_the_iterator_closes_all(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(bytes(3 * PIECE))
    before = open_files()
    pieces = export_layer(tmp_path)
    next(pieces)
    assert open_files() > before
    pieces.close()
    assert open_files() == before


def test_a_file_in_place_of_the_upper_fails(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(StorageFailed):
        exported(tmp_path / "f")


def test_files_with_sizes_around_a_piece(tmp_path: Path) -> None:
    sizes = (0, 1, 511, 512, 513, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE)
    for size in sizes:
        (tmp_path / f"f{size}").write_bytes(os.urandom(size))
    tar = exported(tmp_path)
    assert len(tar) % 512 == 0
    for entry in walk_tar(tar)[1:]:
        assert content(tar, entry) == (tmp_path / os.fsdecode(entry.path)).read_bytes()


def test_the_walk_skips_files_that_vanish(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    steps = walk(tmp_path)
    assert next(steps).path == b""
    for name in ("b", "c"):
        (tmp_path / name).rmdir()
    (tmp_path / "c").touch()
    assert [one.path for one in steps] == [b"a", b"b", b"c"]
