"""A writable snapshot of a present image, against overlayfs above a directory on ext4."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bench import Bench
from .contestants import Imgfs
from .images import Image
from .processes import run
from .reading import COLD, WARM
from .scenes import CHURN, FILES, STAT, WALK, Scene, compare, unpack

ACTIVE = "active"
OVERLAY = "overlayfs on ext4"
_KEY = "bench"
_SCENES = (
    Scene("many:gz", 1, "srv", (STAT, WALK, FILES, CHURN), (WARM,)),
    Scene("base:gz", 0, ".", (STAT, WALK, FILES, CHURN), (WARM,)),
    Scene("many:gz", 1, "srv", (WALK, FILES), (COLD,)),
    Scene("base:gz", 0, ".", (WALK, FILES), (COLD,)),
)


def compare_active(bench: Bench) -> None:
    """Read the image's files, and create, write and remove files beside them."""
    compare(bench, ACTIVE, _SCENES, {OVERLAY: _overlay, Imgfs.name: _imgfs})


@contextmanager
def _overlay(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.rooms.room() as room:
        lower, upper, work, merged = (room / name for name in ("lower", "upper", "work", "merged"))
        unpack(image, lower)
        for made in (upper, work, merged):
            made.mkdir()
        run("mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", merged)
        yield merged / scene.part


@contextmanager
def _imgfs(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        mount.pull(bench.registry.near, image.label)
        chain = mount.rootfs(bench.registry.near, image.label).parent
        snapshot = mount.mountpoint / "snapshots/active" / _KEY
        snapshot.mkdir()
        (snapshot / "parent").symlink_to(f"../../{chain.name}")
        tree = snapshot / "rootfs"
        os.stat(tree)  # the first look mounts it
        yield tree / scene.part
