"""An ID names one container at a time: the deletion of a container never touches a newer container with the same ID."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from imgfs.errors import NotFound
from imgfs.execution.control import open_directory
from imgfs.execution.removal import delete_through_mount, remove_snapshot
from tests.execution.box import Box, boxed, supervisors, until
from tests.support.mounted import Mounted


def test_a_deletion_leaves_the_next_container_with_its_id_alone(box: Box) -> None:
    box.ended(box.start("box", "true", id="again"))
    record = box.record("again")
    container = record.container()
    with open_directory(record.path) as place:
        (box.mount.path / "containers/again").rmdir()
        box.ended(box.start("box", "sh", "-c", "exit 3", id="again"))
        assert delete_through_mount(container, place) is None
    assert box.record("again").status().exit_code == 3
    with open_directory(record.path) as place:
        assert delete_through_mount(box.record("again").container(), place) is None
    box.assert_nothing_stays("again")


def test_a_deletion_leaves_a_container_of_another_state_directory_alone(tmp_path: Path) -> None:
    """The other state directory is mounted at the same mountpoint, and has a container with the same ID."""
    ending = tmp_path / "ending"
    with boxed(tmp_path) as box:
        script = "while [ ! -e /v/ending ]; do sleep 0.02; done; exit 9"
        done = box.run("-d", "--rm", "--name", "both", "-v", f"{tmp_path}:/v", "box", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        record = box.record("both")
        box.mount.stop()
        with Mounted(tmp_path) as other:
            other.state = tmp_path / "other"
            other.start()
            assert other.run("import", str(tmp_path / "layout")).returncode == 0
            beside = Box(other)
            assert beside.run("--name", "both", "box", "sh", "-c", "exit 4").returncode == 4
            ending.touch()
            until(lambda: not supervisors(box.mount.path))
            assert beside.record("both").status().exit_code == 4
            with pytest.raises(NotFound, match="its tree is not mounted there"):
                remove_snapshot(box.records, record.container())  # that tree does not have the snapshot
            assert beside.imgfs("delete", "both").returncode == 4
            other.stop()
        assert record.status().exit_code == 9
        with open_directory(record.path) as place:
            left = delete_through_mount(record.container(), place)
        assert left is not None
        assert left.errno == errno.ENOENT
        box.mount.start()
        until(lambda: not record.path.exists())
        kept = box.records.find_deleted("both")
        assert kept is not None
        assert kept.status.exit_code == 9
        box.assert_nothing_stays("both")
