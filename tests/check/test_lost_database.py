"""A start with a lost or damaged database: the tree has its former content, and the daemon reports the rebuild."""

from __future__ import annotations

import json
import os

import pytest

from imgfs.testing.faults import status
from tests.check.scene import HARMS, TWO, Damage


def told(scene: Damage) -> object:
    return json.loads((scene.mounted.path / ".imgfs/state.json").read_bytes())["database"]


@pytest.mark.parametrize("harm", HARMS)
def test_the_start_rebuilds_the_database_without_the_network(unmounted: Damage, harm: str) -> None:
    HARMS[harm](unmounted.state / "imgfs.db")
    unmounted.registry.fault(status(503), times=None)
    unmounted.mounted.start()
    unmounted.assert_served()
    unmounted.registry.reset()
    said = told(unmounted)
    assert isinstance(said, dict)
    assert said["aside"] == (None if harm == "delete" else "imgfs.db.damaged-1")
    assert "the database was rebuilt" in unmounted.mounted.log()
    unmounted.mounted.stop()
    assert unmounted.damaged() == []
    unmounted.mounted.start()
    assert told(unmounted) == "whole"


def test_without_a_copy_snapshots_are_found_and_names_are_resolved_again(unmounted: Damage) -> None:
    for name in ("imgfs.db", "imgfs.copy"):
        (unmounted.state / name).unlink()
    unmounted.mounted.start()
    assert (unmounted.name / "rootfs/two").read_bytes() == TWO
    snapshots = unmounted.mounted.snapshots
    assert (snapshots / "active/mine/rootfs/file").read_text() == "1"
    assert (snapshots / "done/rootfs/file").read_text() == "2"


def test_a_kill_loses_no_snapshot_with_the_database(unmounted: Damage) -> None:
    """The copy dates from the last clean stop; the notes in the snapshot directories are newer."""
    unmounted.mounted.start()
    snapshots = unmounted.mounted.snapshots
    (snapshots / "active/late").mkdir()
    (snapshots / "active/late/rootfs/file").write_text("3")
    os.rename(snapshots / "active/mine", snapshots / "kept")
    unmounted.mounted.kill()
    (unmounted.state / "imgfs.db").unlink()
    unmounted.mounted.start()
    assert (snapshots / "active/late/rootfs/file").read_text() == "3"
    assert (snapshots / "kept/rootfs/file").read_text() == "1"
    assert not (snapshots / "active/mine").exists()
