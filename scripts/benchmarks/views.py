"""P8: reading a present image through the mount, against ratarmount on the uncompressed tar and an ext4 directory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import readers
from .bench import Bench, given_up, recorded, say
from .contestants import Imgfs
from .disks import filesystem_type, mounts_below, unmount_below
from .images import Image
from .processes import Failed, run, start, stop, wait_until
from .results import Unit

VIEWS = "P8"
DIRECTORY, RATARMOUNT = "ext4 directory", "ratarmount"
COLD, WARM = "cold", "warm"
WALK, FILES, SEQUENTIAL = "walk", "open + read + close", "sequential"
FILES_READ = 3000


@dataclass(frozen=True, slots=True)
class Scene:
    """What is read of an image: a part of its tree, which lies whole in one layer."""

    label: str
    layer: int
    part: str
    operations: tuple[str, ...]

    def case(self, operation: str, state: str) -> str:
        return f"{self.label} {operation} {state}"


SCENES = (
    Scene("many:gz", 1, "srv", (WALK, FILES)),
    Scene("base:gz", 0, ".", (WALK, FILES)),
    Scene("big:gz", 1, "data/large", (SEQUENTIAL,)),
)
_UNITS = {WALK: Unit.PER_SECOND, FILES: Unit.PER_SECOND, SEQUENTIAL: Unit.MEGABYTES_PER_SECOND}
_READER_WORDS: Mapping[str, tuple[str, ...]] = {WALK: (), FILES: (str(FILES_READ),), SEQUENTIAL: ()}
_READER_NAME = {WALK: "walk", FILES: "files", SEQUENTIAL: "sequential"}


def read_views(bench: Bench) -> None:
    """Each view of an image is set up once, whole and local; then they are read in turns, cold and warm."""
    for scene in SCENES:
        if not bench.wants(scene.label):
            continue
        say(f"{VIEWS} {scene.label}")
        image = bench.images([scene.label])[0]
        with ExitStack() as stack:
            trees = dict(_set_up(bench, scene, image, stack))
            _read_in_turns(bench, scene, trees)


def _set_up(bench: Bench, scene: Scene, image: Image, stack: ExitStack) -> Iterator[tuple[str, Path]]:
    # imgfs comes last: its room is closed first, and closing a room ends what detached itself, as its daemon did.
    for name, opened in ((DIRECTORY, _directory), (RATARMOUNT, _ratarmount), (Imgfs.name, _imgfs)):
        rows = [
            bench.results.row(VIEWS, scene.case(operation, state), name, _UNITS[operation])
            for operation in scene.operations
            for state in (COLD, WARM)
        ]
        with recorded(*rows):
            tree = stack.enter_context(opened(bench, scene, image))
            for row in rows:
                row.note = f"on {filesystem_type(tree)}"
            yield name, tree


@contextmanager
def _directory(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.rooms.room() as room:
        for tar in image.tars:
            run("tar", "-xf", tar, "-C", room)
        yield room / scene.part


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


def _installed_ratarmount(work: Path) -> Path:
    venv = work / "ratarmount"
    program = venv / "bin/ratarmount"
    if not program.exists():
        run(sys.executable, "-m", "venv", "--clear", venv)
        run(venv / "bin/pip", "install", "--quiet", "ratarmount")
    return program


@contextmanager
def _imgfs(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    with bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        mount.pull(bench.registry.near, image.label)
        yield (mount.image(bench.registry.near, image.label) / "rootfs").resolve() / scene.part


def _read_in_turns(bench: Bench, scene: Scene, trees: Mapping[str, Path]) -> None:
    amounts = dict[str, int]()
    names = list(trees)
    for number in range(bench.repeats if names else 0):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for operation in scene.operations:
                for state in (COLD, WARM):
                    _read(bench, scene, name, trees[name], operation, state, amounts)


def _read(
    bench: Bench, scene: Scene, name: str, tree: Path, operation: str, state: str, amounts: dict[str, int]
) -> None:
    """One timed read. Its amount must be the one that the first view of this scene gave."""
    row = bench.results.row(VIEWS, scene.case(operation, state), name, _UNITS[operation])
    if given_up(row):
        return
    with recorded(row):
        words = (*_READER_WORDS[operation], *([COLD] if state == COLD else []))
        reader = (sys.executable, "-I", "-S", readers.__file__, _READER_NAME[operation])
        measured = json.loads(run(*reader, tree, *words, timeout=300))
        if measured["amount"] != amounts.setdefault(operation, measured["amount"]):
            raise Failed(f"{name}: {operation} found {measured['amount']}, another view {amounts[operation]}")
        scale = 1e6 if operation == SEQUENTIAL else 1
        row.samples.append(measured["amount"] / scale / measured["seconds"])
