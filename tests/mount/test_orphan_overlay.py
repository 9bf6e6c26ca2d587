"""An overlay that outlives its daemon: while a process writes through it, its snapshot is in use."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from imgfs.kernel.mounts import unmount
from tests.mount.scene import refused
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
