"""Changes of the host in a rootfs stay inside the rootfs, whatever the image contains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.errors import Invalid, TooLarge
from imgfs.execution.bundle.rootfs import FILE_MAX, make_directory_in, read_file_in
from imgfs.execution.control import open_directory


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A rootfs beside a secret."""
    (tmp_path / "secret").write_text("of the host")
    (tmp_path / "outside").mkdir()
    path = tmp_path / "rootfs"
    (path / "etc").mkdir(parents=True)
    return path


@pytest.fixture
def root(rootfs: Path) -> Iterator[int]:
    """The same rootfs, opened."""
    with open_directory(rootfs) as descriptor:
        yield descriptor


@pytest.mark.parametrize("target", ["../../secret", "/secret", "../" * 9 + "secret", "/proc/self/root/secret"])
def test_a_link_out_of_the_rootfs_resolves_within_it(rootfs: Path, root: int, target: str) -> None:
    (rootfs / "etc/passwd").symlink_to(target)
    assert read_file_in(root, "etc/passwd") == b""
    (rootfs / "secret").write_text("its own")
    expected = b"" if "proc" in target else b"its own"
    assert read_file_in(root, "etc/passwd") == expected


def test_a_special_file_reads_as_empty_and_never_blocks(rootfs: Path, root: int) -> None:
    os.mkfifo(rootfs / "etc/passwd")
    os.mknod(rootfs / "etc/group", 0o20666, os.makedev(1, 5))
    (rootfs / "loop").symlink_to("loop")
    for path in ("etc/passwd", "etc/group", "etc", "loop", "nothing", "etc/passwd/x"):
        assert read_file_in(root, path) == b""


def test_file_is_read_up_to_its_limit(rootfs: Path, root: int) -> None:
    with (rootfs / "etc/passwd").open("wb") as file:
        file.truncate(FILE_MAX)
    assert len(read_file_in(root, "etc/passwd")) == FILE_MAX
    with (rootfs / "etc/passwd").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TooLarge):
        read_file_in(root, "etc/passwd")


def test_directories_are_made_where_they_are_missing(rootfs: Path, root: int) -> None:
    before = os.umask(0o077)
    try:
        make_directory_in(root, "/a/b/c", "directory")
    finally:
        os.umask(before)
    make_directory_in(root, "/a/b/c", "directory")
    make_directory_in(root, "/", "directory")
    assert (rootfs / "a/b/c").stat().st_mode & 0o777 == 0o755


def test_directories_are_made_within_the_rootfs(rootfs: Path, root: int, tmp_path: Path) -> None:
    (rootfs / "up").symlink_to("../../outside")
    (rootfs / "host").symlink_to(tmp_path / "outside")
    (rootfs / "outside").mkdir()
    make_directory_in(root, "up/made", "directory")
    assert (rootfs / "outside/made").is_dir()
    with pytest.raises(Invalid, match="goes through a link to a missing target"):
        make_directory_in(root, "host/made", "directory")
    assert os.listdir(tmp_path / "outside") == []


def test_a_file_in_place_of_a_directory_is_reported(rootfs: Path, root: int) -> None:
    (rootfs / "file").write_text("")
    (rootfs / "loop").symlink_to("loop")
    for path in ("file", "file/x"):
        with pytest.raises(Invalid, match="is not a directory in the image"):
            make_directory_in(root, path, "directory")
    with pytest.raises(Invalid, match="Too many levels"):
        make_directory_in(root, "loop/x", "directory")
