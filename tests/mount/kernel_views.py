"""What the kernel shows below a mount: the table of mounts, and rootfs directories walked to without a view's help."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from imgfs.kernel.mounts import MountEntry, mounts_below
from imgfs.oci.digest import chain_id
from imgfs.testing.build import Image
from tests.mount.scene import CONFIG, Scene
from tests.support.mounted import Mounted

FUSE = CONFIG + 'views = "fuse"\n'


def chain_of(scene: Scene, made: Image) -> Path:
    """snapshots/<chain ID> of an image."""
    return scene.mount.snapshots / chain_id(made.diff_ids)


def shown(mount: Mounted) -> list[MountEntry]:
    """What is mounted below the tree."""
    return mounts_below(str(mount.path))


def shown_at(mount: Mounted, snapshot: Path) -> list[str]:
    """The kinds of filesystem mounted over the rootfs of a snapshot."""
    return [one.filesystem for one in shown(mount) if one.mountpoint == str(snapshot / "rootfs")]


def state_of(mount: Mounted) -> dict[str, Any]:
    """`.imgfs/state.json`, decoded."""
    return json.loads((mount.path / ".imgfs/state.json").read_bytes())


def layer_directory(mount: Mounted, made: Image, number: int) -> Path:
    """Where the state directory keeps a layer of an image."""
    return mount.state / "layers/sha256" / made.layers[number].diff_id.hex


def forget_layers(mount: Mounted, made: Image, *numbers: int) -> None:
    """Take layers of an image (all of them by default) from a state directory whose daemon has stopped."""
    for number in numbers or range(len(made.layers)):
        shutil.rmtree(layer_directory(mount, made, number), ignore_errors=True)


def metadata_image(mount: Mounted, made: Image) -> Path:
    """Where the state directory keeps the metadata image of a chain."""
    return mount.state / "views" / f"{chain_id(made.diff_ids).hex}.erofs"


def prepare(scene: Scene, key: str, parent: str) -> Path:
    """An active snapshot on a chain; its directory."""
    directory = scene.mount.snapshots / "active" / key
    directory.mkdir()
    os.symlink(f"../../{parent}", directory / "parent")
    return directory
