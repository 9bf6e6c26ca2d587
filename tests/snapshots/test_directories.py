"""Snapshot directories: made completely, and removed with any content."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from imgfs.errors import StorageFailed
from imgfs.snapshots.directories import SnapshotDirectories, remove_tree
from imgfs.snapshots.usage import measure

from .steps import dies

NOBODY = 65534
DEEP = 3000


def deepen(top: Path, depth: int) -> None:
    """Make a chain of directories that is far longer than the longest path."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_new_directory_has_the_modes_that_an_overlay_needs(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path)
    old = os.umask(0o077)
    try:
        directories.make(7)
    finally:
        os.umask(old)
    assert directories.numbers() == {7}
    assert stat.S_IMODE(directories.upper(7).stat().st_mode) == 0o755
    assert stat.S_IMODE(directories.work(7).stat().st_mode) == 0o700
    assert directories.is_empty(7)
    assert directories.garbage() == []


def test_an_existing_directory_is_not_replaced(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path)
    directories.make(7)
    (directories.upper(7) / "f").touch()
    with pytest.raises(StorageFailed):
        directories.make(7)
    assert (directories.upper(7) / "f").exists()
    assert directories.garbage() == []


@pytest.mark.parametrize("most", range(6))
def test_an_interrupted_removal_is_continued(tmp_path: Path, most: int) -> None:
    top, left = tmp_path / "top", iter(range(most))
    (top / "a/b").mkdir(parents=True)
    for name in ("a/b/1", "a/2", "3"):
        (top / name).touch()
    with nullcontext() if most == 5 else pytest.raises(StopIteration):
        remove_tree(top, lambda: next(left))
    assert top.exists() is (most < 5)
    remove_tree(top)
    assert not top.exists()


def test_setting_aside_twice(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path)
    directories.make(7)
    waiting = directories.set_aside(7)
    assert waiting is not None
    assert directories.garbage() == [waiting]
    assert directories.set_aside(7) is None
    assert directories.is_empty(7)
    remove_tree(waiting)
    remove_tree(waiting)
    assert directories.garbage() == []


def test_trees_deeper_than_path_and_recursion_limits_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("a", "b", "c/d/e"):
        (top / name).mkdir(parents=True)
    deepen(top / "b", DEEP)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(top)
    assert not top.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_usage_of_a_deep_tree(tmp_path: Path) -> None:
    deepen(tmp_path, DEEP)
    try:
        assert measure(tmp_path).inodes == DEEP + 1
    finally:
        remove_tree(tmp_path / ("d" * 50))


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "top").mkdir()
    os.symlink("../kept", tmp_path / "top/link")
    os.symlink("nowhere", tmp_path / "top/dangling")
    remove_tree(tmp_path / "top")
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_directories_without_owner_permissions_are_removed(tmp_path: Path) -> None:
    for one in (tmp_path, *list(tmp_path.parents)[:3]):
        os.chmod(one, one.stat().st_mode | 0o011)
    for mode in (0, 0o500, 0o300, 0o100):
        (tmp_path / "home/top" / str(mode) / "below").mkdir(parents=True)
        (tmp_path / "home/top" / str(mode) / "below/f").touch()
    for path in [tmp_path / "home", *(tmp_path / "home").rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    for mode in (0, 0o500, 0o300, 0o100):
        os.chmod(tmp_path / "home/top" / str(mode), mode)

    def as_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        remove_tree(tmp_path / "home/top")

    assert not dies(as_nobody)
    assert os.listdir(tmp_path / "home") == []
