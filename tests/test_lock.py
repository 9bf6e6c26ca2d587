"""The lock of a state directory: it has at most one holder, and reading the holder does not take the lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.errors import Busy
from imgfs.lock import holder, locked


def test_an_unlocked_or_released_directory_has_no_holder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with locked(tmp_path, "at /mnt"):
        pass
    assert holder(tmp_path) is None


def test_the_holder_has_the_mountpoint_of_the_daemon(tmp_path: Path) -> None:
    with locked(tmp_path, "at /mnt/with at in it"):
        held = holder(tmp_path)
        assert held is not None
        assert held.mountpoint == "/mnt/with at in it"
        with pytest.raises(Busy), locked(tmp_path, "again"):
            pass


def test_a_repair_is_a_holder_without_a_mountpoint(tmp_path: Path) -> None:
    with locked(tmp_path, "for repair"):
        held = holder(tmp_path)
        assert held is not None
        assert held.mountpoint is None


def test_a_lock_on_another_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/lock").write_text("")
    with locked(tmp_path, "at /mnt"):
        assert holder(tmp_path / "other") is None
