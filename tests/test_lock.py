"""The lock of a state directory: one holder, and who it is, without getting in anybody's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.errors import Busy
from imgfs.lock import holder, locked


def test_nobody_holds_a_directory_that_was_never_locked_or_let_go(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with locked(tmp_path, "at /mnt"):
        pass
    assert holder(tmp_path) is None


def test_the_holder_says_where_it_shows_the_state(tmp_path: Path) -> None:
    with locked(tmp_path, "at /mnt/with at in it"):
        held = holder(tmp_path)
        assert held is not None
        assert held.mountpoint == "/mnt/with at in it"
        with pytest.raises(Busy), locked(tmp_path, "again"):
            pass


def test_a_repair_shows_it_nowhere(tmp_path: Path) -> None:
    with locked(tmp_path, "for repair"):
        held = holder(tmp_path)
        assert held is not None
        assert held.mountpoint is None


def test_another_file_of_that_process_is_not_the_lock(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/lock").write_text("")
    with locked(tmp_path, "at /mnt"):
        assert holder(tmp_path / "other") is None
