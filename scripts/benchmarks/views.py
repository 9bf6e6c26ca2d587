"""P8: the FUSE view of a present image, against ratarmount on the uncompressed tar and an ext4 directory.

Beside them is the least cost of any filesystem on pyfuse3 (least.py), which imgfs cannot beat.
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
        tar = room / "layer.tar"
        shutil.copyfile(image.tars[scene.layer], tar)  # so that cold reads of all contestants come from the same disk
        with _mounted(room, program, "-f", "--index-file", room / "index.sqlite", tar) as mountpoint:
            yield mountpoint / scene.part


@contextmanager
def _least(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    words = sys.executable, "-m", "benchmarks.least", image.tars[scene.layer]
    with bench.rooms.room() as room, _mounted(room, *words) as mountpoint:
        yield mountpoint / scene.part


@contextmanager
def _mounted(room: Path, *command: str | Path) -> Iterator[Path]:
    """Yield the tree that `command` mounts and serves. The mountpoint is the command's last argument."""
    mountpoint, log = room / "mnt", room / "log"
    mountpoint.mkdir()
    process = start(*command, mountpoint, log=log)
    try:
        wait_until(lambda: mountpoint in mounts_below(room), str(command[0]), process, log, timeout=120)
        yield mountpoint
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
