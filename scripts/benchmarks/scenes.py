"""Scenes: a present image in several trees, read in turns.

Owns the turns and the operations. The experiments decide which contestants show the trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .bench import Bench, given_up, recorded, say
from .disks import filesystem_type
from .images import Image
from .processes import Failed, run
from .reading import COLD, WARM, Reader
from .results import Row, Unit

FILES_READ = 3000
CHURNED = 1000
DIRECTORY = "ext4 directory"
SEQUENTIAL = "sequential"


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on a tree: its name in the report, and the reader's arguments."""

    name: str
    words: tuple[str, ...]
    unit: Unit = Unit.PER_SECOND


WALK = Operation("walk", ("walk",))
STAT = Operation("stat", ("stat", str(FILES_READ)))
FILES = Operation("open + read + close", ("files", str(FILES_READ)))
CHURN = Operation("create + write + unlink", ("churn", str(CHURNED)))


def sequential(name: str) -> Operation:
    """Read one file from begin to end."""
    return Operation(SEQUENTIAL, ("sequential", name), Unit.MEGABYTES_PER_SECOND)


@dataclass(frozen=True, slots=True)
class Scene:
    """The part of an image's tree that is read. It lies entirely in one layer."""

    label: str
    layer: int
    part: str
    operations: tuple[Operation, ...]
    states: tuple[str, ...] = (COLD, WARM)

    def case(self, operation: Operation, state: str) -> str:
        return f"{self.label} {operation.name} {state}"


Opener = Callable[[Bench, Scene, Image], AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scene of an experiment, and the contestants that show it."""

    bench: Bench
    experiment: str
    scene: Scene
    amounts: dict[str, int] = field(default_factory=dict[str, int])
    """The amount that each operation must find: the amount that it found in the first tree."""

    def row(self, operation: Operation, state: str, contestant: str) -> Row:
        return self.bench.results.row(self.experiment, self.scene.case(operation, state), contestant, operation.unit)

    def rows(self, contestant: str) -> list[Row]:
        cases = [(operation, state) for operation in self.scene.operations for state in self.scene.states]
        return [self.row(*case, contestant) for case in cases]


def compare(bench: Bench, experiment: str, scenes: Sequence[Scene], contestants: Mapping[str, Opener]) -> None:
    """Set up each tree of a scene once, complete and local; then read the trees in turns.

    imgfs comes last, so that its room is closed first: closing a room ends detached processes, such as imgfs's daemon.
    """
    for scene in scenes:
        if not bench.wants(scene.label):
            continue
        say(f"{experiment} {scene.label}")
        image = bench.images([scene.label])[0]
        comparison = Comparison(bench, experiment, scene)
        with ExitStack() as stack:
            trees = dict(_set_up(comparison, image, contestants, stack))
            _read_in_turns(comparison, trees)


def _set_up(
    comparison: Comparison, image: Image, contestants: Mapping[str, Opener], stack: ExitStack
) -> Iterator[tuple[str, Path]]:
    for name, opened in contestants.items():
        rows = comparison.rows(name)
        with recorded(*rows):
            tree = stack.enter_context(opened(comparison.bench, comparison.scene, image))
            for row in rows:
                row.note = f"on {filesystem_type(tree)}"
            yield name, tree


def _read_in_turns(comparison: Comparison, trees: Mapping[str, Path]) -> None:
    names, scene, reader = list(trees), comparison.scene, Reader(comparison.bench.work)
    for number in range(comparison.bench.repeats if names else 0):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for operation in scene.operations:
                for state in scene.states:
                    _read(comparison, reader, name, trees[name], operation, state)


def _read(comparison: Comparison, reader: Reader, name: str, tree: Path, operation: Operation, state: str) -> None:
    row = comparison.row(operation, state, name)
    if given_up(row):
        return
    with recorded(row):
        measured = reader.measure(tree, *operation.words, state=state)
        expected = comparison.amounts.setdefault(operation.name, measured.amount)
        if measured.amount != expected:
            raise Failed(f"{name}: {operation.name} found {measured.amount}, another tree {expected}")
        scale = 1e6 if operation.unit is Unit.MEGABYTES_PER_SECOND else 1
        row.samples.append(measured.rate / scale)


def unpack(image: Image, target: Path) -> None:
    """Unpack all layers into a directory, base first (the images have no whiteouts)."""
    target.mkdir()
    for tar in image.tars:
        run("tar", "-xf", tar, "-C", target)


@contextmanager
def directory(bench: Bench, scene: Scene, image: Image) -> Iterator[Path]:
    """Unpack the image into a directory of the rooms' disk."""
    with bench.rooms.room() as room:
        unpack(image, room / "tree")
        yield room / "tree" / scene.part
