"""An overlay that outlives its daemon: while a process writes through it, its snapshot is in use."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from imgfs.kernel.mounts import mount_at, unmount
from tests.mount.scene import refused, succeed, until
from tests.support.mounted import Mounted


def active(mounted: Mounted) -> Path:
    snapshot = mounted.path / "snapshots/active/K"
    snapshot.mkdir()
    (snapshot / "rootfs/file").write_text("before\n")
    return snapshot


def test_a_writer_that_survives_the_daemon_keeps_its_snapshot_busy(mounted: Mounted) -> None:
    snapshot = active(mounted)
    with (snapshot / "rootfs/file").open("a") as file:
        mounted.kill()
        mounted.start()
        with refused(errno.EBUSY):
            os.listdir(snapshot / "rootfs")
        with refused(errno.EBUSY):
            os.rename(snapshot, mounted.path / "snapshots/name")
        with refused(errno.EBUSY):
            os.rmdir(snapshot)
        file.write("after\n")
    assert (snapshot / "rootfs/file").read_text() == "before\nafter\n"
    os.rename(snapshot, mounted.path / "snapshots/name")
    assert (mounted.path / "snapshots/name/rootfs/file").read_text() == "before\nafter\n"


def test_a_lazily_unmounted_rootfs_with_a_writer_is_busy(mounted: Mounted) -> None:
    snapshot = active(mounted)
    with (snapshot / "rootfs/file").open("a"):
        unmount(str(snapshot / "rootfs"), detach=True)
        with refused(errno.EBUSY):
            os.rename(snapshot, mounted.path / "snapshots/name")
    os.rename(snapshot, mounted.path / "snapshots/name")


def test_a_mount_of_somebody_else_over_a_rootfs_is_left_alone(tmp_path: Path) -> None:
    with Mounted(tmp_path, "view_idle_seconds = 1.0") as mounted:
        mounted.start()
        snapshot, other = active(mounted), mounted.path / "snapshots/active/other"
        succeed("mount", "-t", "tmpfs", "none", snapshot / "rootfs")
        (snapshot / "rootfs/precious").write_text("1")
        other.mkdir()
        (other / "rootfs/file").write_text("1")
        until(lambda: mount_at(str(other / "rootfs")) is None)  # the idle one has gone
        with refused(errno.EBUSY):
            os.rmdir(snapshot)
        assert (snapshot / "rootfs/precious").read_text() == "1"
        unmount(str(snapshot / "rootfs"))
        assert (snapshot / "rootfs/file").read_text() == "before\n"
