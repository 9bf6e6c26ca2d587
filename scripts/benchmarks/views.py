"""P8: the FUSE view of a present image, against ratarmount on the uncompressed tar and an ext4 directory.

Beside them the least that any filesystem on pyfuse3 costs (least.py): what is not possible there is not for imgfs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bench import Bench
from .contestants import Imgfs, ImgfsInFuse
from .disks import mounts_below, unmount_below
from .images import Image
from .processes import run, start, stop, wait_until
from .scenes import DIRECTORY, FILES, WALK, Scene, compare, directory, sequential

VIEWS = "P8"
RATARMOUNT = "ratarmount"
LEAST = "pyfuse3 alone"
SCENES = (
    Scene("many:gz", 1, "srv", (WALK, FILES)),
    Scene("base:gz", 0, ".", (WALK, FILES)),
    Scene("big:gz", 1, "data", (sequential("large"),)),
)


def read_views(bench: Bench) -> None:
    """Walk, read many files and read a large one, cold and warm."""
    contestants = {DIRECTORY: directory, RATARMOUNT: _ratarmount, LEAST: _least, Imgfs.name: _imgfs}
    compare(bench, VIEWS, SCENES, contestants)


@contextmanager
def _ratarmount(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    program = _installed_ratarmount(bench.work)
    with bench.rooms.room() as room:
        mountpoint, log, tar = room / "mnt", room / "log", room / "layer.tar"
        mountpoint.mkdir()
        shutil.copyfile(image.tars[scene.layer], tar)  # so that a cold read comes from the same disk for all
        options = ("-f", "--index-file", str(room / "index.sqlite"))
        process = start(program, *options, tar, mountpoint, log=log)
        try:
            wait_until(lambda: mountpoint in mounts_below(room), "ratarmount", process, log, timeout=120)
            yield mountpoint / scene.part
        finally:
            unmount_below(room)
            stop(process)


@contextmanager
def _least(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.rooms.room() as room:
        mountpoint, log = room / "mnt", room / "log"
        mountpoint.mkdir()
        process = start(sys.executable, "-m", "benchmarks.least", image.tars[scene.layer], mountpoint, log=log)
        try:
            wait_until(lambda: mountpoint in mounts_below(room), "pyfuse3", process, log, timeout=120)
            yield mountpoint / scene.part
        finally:
            unmount_below(room)
            stop(process)


def _installed_ratarmount(work: Path) -> Path:
    venv = work / "ratarmount"
    program = venv / "bin/ratarmount"
    if not program.exists():
        run(sys.executable, "-m", "venv", "--clear", venv)
        run(venv / "bin/pip", "install", "--quiet", "ratarmount")
    return program


@contextmanager
def _imgfs(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.entered(ImgfsInFuse) as mount:
        assert isinstance(mount, Imgfs)
        mount.pull(bench.registry.near, image.label)
        yield mount.rootfs(bench.registry.near, image.label) / scene.part
