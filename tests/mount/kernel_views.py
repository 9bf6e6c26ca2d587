"""The kernel's side of a mount: the mount table, and walks to rootfs directories that do not mount a view."""

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
    """Return the path snapshots/<chain ID> of an image."""
    return scene.mount.snapshots / chain_id(made.diff_ids)


def shown(mount: Mounted) -> list[MountEntry]:
    """Return the mounts below the tree."""
    return mounts_below(str(mount.path))


def shown_at(mount: Mounted, snapshot: Path) -> list[str]:
    """Return the types of the filesystems mounted over the rootfs of a snapshot."""
    return [one.filesystem for one in shown(mount) if one.mountpoint == str(snapshot / "rootfs")]


def state_of(mount: Mounted) -> dict[str, Any]:
    """Return `.imgfs/state.json`, decoded."""
    return json.loads((mount.path / ".imgfs/state.json").read_bytes())


def layer_directory(mount: Mounted, made: Image, number: int) -> Path:
    """Return the directory of an image's layer in the state directory."""
    return mount.state / "layers/sha256" / made.layers[number].diff_id.hex


def forget_layers(mount: Mounted, made: Image, *numbers: int) -> None:
    """Delete layers of an image (by default all) from the state directory of a stopped daemon."""
    for number in numbers or range(len(made.layers)):
        shutil.rmtree(layer_directory(mount, made, number), ignore_errors=True)


def metadata_image(mount: Mounted, made: Image) -> Path:
    """Return the path of the metadata image of a chain in the state directory."""
    return mount.state / "views" / f"{chain_id(made.diff_ids).hex}.erofs"


def prepare(scene: Scene, key: str, parent: str) -> Path:
    """Make an active snapshot on a chain, and return its directory."""
    directory = scene.mount.snapshots / "active" / key
    directory.mkdir()
    os.symlink(f"../../{parent}", directory / "parent")
    return directory
