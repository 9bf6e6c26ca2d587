"""A state directory of an old release is mounted: its names, files, snapshots, labels and leases are all there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.database.released import RELEASES, Released, unpack
from tests.support.mounted import Mounted


@pytest.fixture(params=RELEASES)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Released:
    return unpack(request.param, tmp_path)


def check(released: Released, mount: Mounted) -> None:
    for name, digest in released.names.items():
        assert os.path.basename(os.readlink(mount.image(name))) == digest
        assert os.listdir(mount.image(name) / "rootfs")
    if released.has_snapshots:
        digest = released.names["mine"]
        assert (mount.snapshots / "kept/rootfs/hello").read_text() == "from an old release"
        assert (mount.snapshots / "active/work/rootfs/more").read_text() == "unfinished"
        assert os.getxattr(mount.snapshots / "active/work", "user.label.why") == b"a test"
        assert os.getxattr(mount.content / digest, "user.label.who") == b"\xffsomebody"
        lease = mount.path / ".imgfs/leases/mine"
        assert os.getxattr(lease, "user.imgfs.expires") == b"2199-01-31T12:00:00Z"
        assert os.readlink(lease / "image") == f"../../../content/{digest}"


def test_everything_is_there_without_a_registry(released: Released) -> None:
    with Mounted(released.state.parent) as mount:
        for _ in range(2):
            mount.start()
            check(released, mount)
            mount.stop()
        assert not list(released.state.glob("imgfs.db.damaged*"))
        assert mount.run("check", "--state", str(released.state)).returncode == 0


def test_a_lost_database_comes_back_from_the_copy_of_its_release(released: Released) -> None:
    if not (released.state / "imgfs.copy").exists():
        pytest.skip("that release made no copy")
    (released.state / "imgfs.db").unlink()
    with Mounted(released.state.parent) as mount:
        mount.start()
        check(released, mount)
        mount.stop()


def test_check_finds_no_fault_before_the_upgrade(released: Released, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(released.state, before, symlinks=True)
    with Mounted(released.state.parent) as mount:
        done = mount.run("check", "--state", str(released.state))
        assert "imgfs.db" not in done.stdout
        assert "imgfs.copy" not in done.stdout
    assert (released.state / "imgfs.db").read_bytes() == (before / "imgfs.db").read_bytes()
