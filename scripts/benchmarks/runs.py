"""`run`: a container that does nothing, from a present image, from command start to exit; alone and twenty at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol

from .bench import Bench, given_up, recorded, say, timed
from .contestants import Containerd, Contestant, Imgfs, Podman, SkopeoUmoci
from .results import Row, Unit
from .servers import Address

RUN = "run"
IMAGE = "tiny:gz"
ALONE, CROWD = "one", "20 at once"
AT_ONCE = 20
RUNTIMES = ("crun", "runc")


class Runner(Protocol):
    """A contestant that has pulled the image."""

    def run_true(self, registry: Address, label: str, id: str) -> None:
        """Run `true` in a container and remove the container. Raises Failed."""
        ...


class PreparedBundle(SkopeoUmoci):
    """The floor: only an OCI runtime, on a bundle that umoci prepared. All runs write into the bundle's one rootfs."""

    runtime: str

    def pull(self, registry: Address, label: str) -> None:
        super().pull(registry, label)
        path = self.room / "bundle/config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"args": ["true"], "terminal": False}
        config["linux"].pop("resources", None)
        path.write_text(json.dumps(config))

    def run_true(self, registry: Address, label: str, id: str) -> None:
        self.run(self.runtime, "--root", self.room / "states", "run", "--bundle", self.room / "bundle", id)


class Runc(PreparedBundle):
    name = "runc, prepared bundle"
    runtime = "runc"


class Crun(PreparedBundle):
    name = "crun, prepared bundle"
    runtime = "crun"


class FilteredRunc(Runc):
    """The same bundle with the seccomp filter that imgfs gives its containers; ctr's containers have none."""

    name = "runc, with imgfs's filter"

    def take(self, filter: Any) -> None:
        path = self.room / "bundle/config.json"
        config = json.loads(path.read_text())
        config["linux"]["seccomp"] = filter
        path.write_text(json.dumps(config))


FLOORS = (Crun.name, Runc.name)
PEERS = (Containerd.name, Podman.name)


def compare_runs(bench: Bench) -> None:
    """Start all daemons and pull the image with each contestant; then the contestants take turns."""
    say(RUN)
    (image,) = bench.images([IMAGE])
    runtimes = [Runc, FilteredRunc, *([Crun] if shutil.which("crun") else [])]
    kinds: list[type[Contestant]] = [Imgfs, Containerd, Podman, *runtimes]
    address = bench.registry.near
    with ExitStack() as stack:
        # Rooms before daemons: closing a room ends any daemon that is still there.
        rooms = {kind: stack.enter_context(bench.rooms.room()) for kind in kinds}
        ready: dict[type[Contestant], Contestant] = {}
        for kind in kinds:
            with recorded(_row(bench, ALONE, kind), _row(bench, CROWD, kind)):
                contestant = stack.enter_context(kind(rooms[kind], bench))
                contestant.pull(address, image.label)
                if isinstance(contestant, FilteredRunc):
                    imgfs = ready[Imgfs]
                    assert isinstance(imgfs, Imgfs)
                    contestant.take(imgfs.filter(address, image.label))
                _runner(contestant).run_true(address, image.label, "first")
                ready[kind] = contestant
        for number, kind in enumerate(bench.rounds(kinds)):
            if kind in ready:
                _measure(
                    bench, kind, lambda id, one=ready[kind]: _runner(one).run_true(address, image.label, id), number
                )


def _measure(bench: Bench, kind: type[Contestant], run_true: Callable[[str], None], number: int) -> None:
    alone, crowd = _row(bench, ALONE, kind), _row(bench, CROWD, kind)
    if not given_up(alone):
        with recorded(alone):
            alone.samples.append(timed(lambda: run_true(f"alone-{number}"))[0])
    if not given_up(crowd):
        with recorded(crowd), ThreadPoolExecutor(AT_ONCE) as threads:
            ids = [f"crowd-{number}-{one}" for one in range(AT_ONCE)]
            crowd.samples.append(timed(lambda: list(threads.map(run_true, ids)))[0])


def _row(bench: Bench, case: str, kind: type[Contestant]) -> Row:
    return bench.results.row(RUN, case, kind.name, Unit.SECONDS)


def _runner(contestant: Contestant) -> Runner:
    assert isinstance(contestant, Imgfs | Containerd | Podman | PreparedBundle)
    return contestant
