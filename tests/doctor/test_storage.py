"""Checks of the state directory's disk: problems are named, and no file is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.doctor import storage
from imgfs.lock import locked
from tests.support.programs import run


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB as the state directory."""
    path = tmp_path / "small"
    path.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", path)
    yield path
    run("umount", path)


def test_the_lock_holder_of_the_directory_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert storage.directory(tmp_path).what == f"{tmp_path}, not in use"
    with locked(tmp_path, "at /mnt"):
        assert storage.directory(tmp_path).what == f"{tmp_path}, in use by pid {os.getpid()} at /mnt"
    tmp_path.chmod(0o755)
    assert storage.directory(tmp_path).cure == f"`chmod 700 {tmp_path}`"


def test_a_missing_directory_is_ok_if_it_can_be_created(tmp_path: Path) -> None:
    state = tmp_path / "deep/state"
    assert storage.directory(state).grade == "ok"
    assert storage.place_of(state) == tmp_path
    (tmp_path / "file").touch()
    assert storage.directory(tmp_path / "file").grade == "fail"


def test_disk_checks_succeed_and_leave_no_files(tmp_path: Path) -> None:
    assert {one.subject: one.grade for one in storage.disk(tmp_path)} == {
        "sync": "ok",
        "holes": "ok",
        "extended attributes": "ok",
    }
    assert list(tmp_path.iterdir()) == []


def test_a_small_volatile_disk_is_reported(small: Path) -> None:
    assert "tmpfs at" in storage.filesystem(small).what
    assert storage.filesystem(small).grade == "warn"
    assert storage.room(small).grade == "fail"
    assert "imgfs gc" in storage.room(small).cure


def test_a_read_only_disk_is_reported(small: Path) -> None:
    run("mount", "-o", "remount,ro", small)
    (told,) = storage.disk(small)
    assert told.grade == "warn"
    assert "remount it writable" in told.cure


def test_a_full_disk_is_reported(small: Path) -> None:
    with pytest.raises(OSError):
        (small / "all").write_bytes(bytes(2 << 20))
    assert [one.grade for one in storage.disk(small)] == ["fail"]


def test_files_from_the_future_are_reported(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    now = (tmp_path / "log").stat().st_mtime
    assert list(storage.times(tmp_path, now)) == []
    (told,) = storage.times(tmp_path, now - 3600)
    assert told.cure == "check that the clock is right"
    assert list(storage.times(tmp_path / "gone", now)) == []


def test_the_topmost_mount_is_examined(tmp_path: Path, small: Path) -> None:
    (small / "inner").mkdir()
    assert "tmpfs" in storage.filesystem(small / "inner").what
    assert "small" not in storage.filesystem(tmp_path).what
