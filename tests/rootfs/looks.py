"""Helpers of the rootfs tests, besides the scene."""

from __future__ import annotations

from imgfs.snapshots.graph import Snapshot
from tests.rootfs.fakes import FakeKernel
from tests.rootfs.scene import Scene


def shown(kernel: FakeKernel) -> dict[str, str]:
    """Return the mounted filesystems by place."""
    return {path.removeprefix("/mnt/"): kind.partition(" ")[0] for path, kind in kernel.mounted.items()}


async def active(scene: Scene, key: str, parent: Snapshot | None = None) -> str:
    """Make an active snapshot and return its ID."""
    info = await scene.snapshots.prepare(key)
    if parent is not None:
        await scene.snapshots.set_parent(key, parent.chain_id)
    return info.id
