"""P6 and P7: the kernel's view of a present image, warm and cold, against mkfs.erofs and an ext4 directory.

The native image of a tree is mounted twice: directly from the file, as imgfs mounts its own images, and from a loop
device.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .bench import Bench
from .contestants import Imgfs
from .disks import filesystem_type, mount_read_only
from .images import Image
from .processes import Failed, run
from .reading import COLD, WARM
from .scenes import DIRECTORY, FILES, STAT, WALK, Scene, compare, directory, sequential, unpack

WARM_VIEW, COLD_VIEW, COLD_ON_DISK = "P6", "P7", "P7 disk"
FROM_FILE, FROM_LOOP = "mkfs.erofs, file", "mkfs.erofs, loop"
NATIVE = (FROM_FILE, FROM_LOOP)
EROFS = "erofs"
_SMALL = Scene("tiny:gz", 0, ".", (STAT, WALK, FILES))
"""A file so small that one cold pass measures nothing."""
_LARGE = Scene("big:gz", 1, "data", (sequential("large"),))
_SCENES = (
    Scene("many:gz", 1, ".", (STAT, WALK, FILES)),
    Scene("base:gz", 0, ".", (STAT, WALK, FILES)),
    _LARGE,
)


def warm(bench: Bench) -> None:
    """The usual work of a container: everything is in the page cache."""
    _compare(bench, WARM_VIEW, WARM, (_SMALL, *_SCENES))


def cold(bench: Bench) -> None:
    """Reads after the caches were dropped; the layers are local."""
    _compare(bench, COLD_VIEW, COLD, _SCENES)


def cold_on_disk(bench: Bench) -> None:
    """Read a large file on the machine's own disk.

    A view mounted from a file keeps each page twice: in the file's cache and in its own cache. In RAM, where nothing
    else costs time, a cold read measures that copy. On a disk the disk's own time hides it.
    """
    _compare(replace(bench, rooms=bench.disk), COLD_ON_DISK, COLD, (_LARGE,))


def _compare(bench: Bench, experiment: str, state: str, all_scenes: Sequence[Scene]) -> None:
    scenes = [replace(scene, states=(state,)) for scene in all_scenes]
    contestants = {DIRECTORY: directory, FROM_FILE: _from_file, FROM_LOOP: _from_loop, Imgfs.name: _imgfs}
    compare(bench, experiment, scenes, contestants)


@contextmanager
def _from_file(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.rooms.room() as room:
        native, mountpoint = _native(image, room)
        mount_read_only(native, mountpoint, EROFS)
        yield mountpoint / scene.part


@contextmanager
def _from_loop(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.rooms.room() as room:
        native, mountpoint = _native(image, room)
        run("mount", "-t", EROFS, "-o", "loop,ro", native, mountpoint)
        yield mountpoint / scene.part


def _native(image: Image, room: Path) -> tuple[Path, Path]:
    """Make an image of the tree with mkfs.erofs's defaults, and return the image and its mountpoint."""
    native, tree, mountpoint = room / "native.erofs", room / "tree", room / "mnt"
    unpack(image, tree)
    run("mkfs.erofs", native, tree)
    shutil.rmtree(tree)
    mountpoint.mkdir()
    return native, mountpoint


@contextmanager
def _imgfs(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        mount.pull(bench.registry.near, image.label)
        tree = mount.rootfs(bench.registry.near, image.label)
        if (kind := filesystem_type(tree)) != EROFS:
            raise Failed(f"imgfs shows {image.label} on {kind}: the kernel's view is not there")
        yield tree / scene.part
