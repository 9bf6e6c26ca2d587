"""The comparator finds each kind of difference, and ignores only what an Ignore names."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import Ignore, compare_trees, directory_mtimes, snapshot_tree, xattr

NAME = b"\xff-not-utf8"


def grow(root: Path) -> Path:
    """Make a tree with one node of each kind, the same every time."""
    (root / "directory").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    os.link(root / "file", root / "second-name")
    (root / "single").write_bytes(b"one name")
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    Path(os.fsdecode(bytes(root) + b"/" + NAME)).write_bytes(b"")
    os.setxattr(root / "single", "user.name", b"value")
    for path in (*root.iterdir(), root):
        os.utime(path, ns=(0, 1_000_000_007), follow_symlinks=False)
    return root


def replace_with(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)
    os.utime(path, ns=(0, 1_000_000_007), follow_symlinks=False)


def relink(root: Path) -> None:
    """Store the same bytes under both names, in two inodes."""
    content = (root / "file").read_bytes()
    replace_with(root / "second-name", lambda path: path.write_bytes(content))


CHANGES: dict[str, tuple[bytes, str, Callable[[Path], object]]] = {
    "mode": (b"single", "mode", lambda root: (root / "single").chmod(0o4711)),
    "uid": (b"single", "uid", lambda root: os.chown(root / "single", 7, -1)),
    "gid": (b"link", "gid", lambda root: os.lchown(root / "link", -1, 7)),
    "mtime": (b"single", "mtime_ns", lambda root: os.utime(root / "single", ns=(0, 1_000_000_008))),
    "mtime of a link": (
        b"link",
        "mtime_ns",
        lambda root: os.utime(root / "link", ns=(0, 5), follow_symlinks=False),
    ),
    "size": (b"single", "size", lambda root: os.truncate(root / "single", 3)),
    "content": (b"single", "sha256", lambda root: (root / "single").write_bytes(b"two name")),
    "target": (b"link", "target", lambda root: replace_with(root / "link", lambda path: path.symlink_to("fil3"))),
    "device": (
        b"null",
        "device",
        lambda root: replace_with(root / "null", lambda path: os.mknod(path, 0o020666, os.makedev(1, 5))),
    ),
    "kind": (b"fifo", "kind", lambda root: replace_with(root / "fifo", lambda path: path.write_bytes(b""))),
    "xattr value": (b"single", "xattrs", lambda root: os.setxattr(root / "single", "user.name", b"other")),
    "xattr name": (b"directory", "xattrs", lambda root: os.setxattr(root / "directory", "user.more", b"")),
    "hard link": (b"second-name", "links", relink),
    "missing": (b"single", "missing", lambda root: (root / "single").unlink()),
    "unexpected": (b"new", "unexpected", lambda root: (root / "new").mkdir()),
    "name": (NAME, "missing", lambda root: os.unlink(bytes(root) + b"/" + NAME)),
}


def test_equal_trees_have_no_differences(tmp_path: Path) -> None:
    expected, actual = snapshot_tree(grow(tmp_path / "a")), snapshot_tree(bytes(grow(tmp_path / "b")))
    assert compare_trees(expected, actual) == []
    assert set(expected) >= {b"", b"directory", b"file", b"link", NAME}


@pytest.mark.parametrize("change", CHANGES)
def test_each_difference_is_found_and_named(tmp_path: Path, change: str) -> None:
    path, word, apply = CHANGES[change]
    expected = snapshot_tree(grow(tmp_path / "tree"))
    apply(tmp_path / "tree")
    found = compare_trees(expected, snapshot_tree(str(tmp_path / "tree")))
    assert any(line.startswith(f"{path!r}: {word}") for line in found), found


def test_a_difference_shows_the_expected_and_the_found_value(tmp_path: Path) -> None:
    expected = snapshot_tree(grow(tmp_path))
    (tmp_path / "single").chmod(0o600)
    assert compare_trees(expected, snapshot_tree(tmp_path)) == ["b'single': mode: expected 0o644, got 0o600"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away/secret").write_bytes(b"")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "away")
    assert set(snapshot_tree(tmp_path / "tree")) == {b"", b"link"}


def test_a_hard_link_outside_the_tree_makes_no_group(tmp_path: Path) -> None:
    grow(tmp_path / "tree")
    os.link(tmp_path / "tree/single", tmp_path / "outside")
    tree = snapshot_tree(tmp_path / "tree")
    assert tree[b"single"].links == frozenset()
    assert tree[b"file"].links == {b"file", b"second-name"}


def test_a_socket_is_a_kind_of_its_own(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
    assert snapshot_tree(tmp_path)[b"s"].kind == "socket"


def test_ignored_directory_mtimes_hide_nothing_else(tmp_path: Path) -> None:
    expected = snapshot_tree(grow(tmp_path))
    os.utime(tmp_path / "directory")
    os.utime(tmp_path / "single")
    found = compare_trees(expected, snapshot_tree(tmp_path), [directory_mtimes("made new")])
    assert [line.partition(": e")[0] for line in found] == ["b'single': mtime_ns"]


def test_ignored_directory_mtimes_are_those_of_the_paths_given(tmp_path: Path) -> None:
    expected = snapshot_tree(grow(tmp_path))
    for path in (tmp_path / "directory", tmp_path):
        os.utime(path)
    found = compare_trees(expected, snapshot_tree(tmp_path), [directory_mtimes("made new", [b""])])
    assert [line.partition(": e")[0] for line in found] == ["b'directory': mtime_ns"]


def test_an_ignored_xattr_leaves_the_others(tmp_path: Path) -> None:
    expected = snapshot_tree(grow(tmp_path))
    os.setxattr(tmp_path / "single", "user.noise", b"1")
    noise = [xattr("user.noise", "the unpacker's own")]
    assert compare_trees(expected, snapshot_tree(tmp_path), noise) == []
    os.removexattr(tmp_path / "single", "user.name")
    assert len(compare_trees(expected, snapshot_tree(tmp_path), noise)) == 1


def test_an_ignored_path_may_be_missing_or_anything(tmp_path: Path) -> None:
    expected = snapshot_tree(grow(tmp_path / "tree"))
    (tmp_path / "tree/fifo").unlink()
    shutil.rmtree(tmp_path / "tree/directory")
    away = frozenset({b"fifo", b"directory", b""})
    assert compare_trees(expected, snapshot_tree(tmp_path / "tree"), [Ignore("path", "not made here", away)]) == []
