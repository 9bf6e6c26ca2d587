"""All workers together: at work until the daemon dies or their time is over, and judged afterwards."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from imgfs.assembly.tables import TABLES
from imgfs.check.examiner import Examiner
from imgfs.database.format import FILE
from imgfs.database.frozen import open_read_only
from imgfs.disk.durable import TEMPORARY
from imgfs.oci.digest import chain_ids
from tests.crashes.ingests import Ingests
from tests.crashes.ledger import Fact
from tests.crashes.names import Leases, Names
from tests.crashes.pulls import Collector, Pulls
from tests.crashes.snapshots import Snapshots
from tests.crashes.worker import GONE, Worker
from tests.mount.preparing import BASE, add_base
from tests.mount.scene import Scene, until

ROOM = 128 << 20
"""More than all workers ever have at once: two times twelve blobs of 1.5 MB, and small things."""


_LOOKS = 5
"""More refusals in a row than a few threads can meet by chance are one."""


class Crew:
    """A worker of each kind, two for ingests; `refused` collects what a living daemon refused: worker and error."""

    def __init__(self, scene: Scene, seed: int) -> None:
        """The daemon must be up: the base image is pulled first."""
        self.scene = scene
        add_base(scene)
        self.refused: list[tuple[str, OSError]] = []
        base = chain_ids(BASE.diff_ids)[-1]
        self.workers: list[Worker] = [
            Ingests(scene, "ink", seed),
            Ingests(scene, "jot", seed),
            Names(scene, "name", seed),
            Leases(scene, "lease", seed),
            Snapshots(scene, "snap", seed, base),
            Pulls(scene, "pull", seed),
            Collector(scene, "gc", seed),
        ]
        self._limit = 0
        self._begun = 0
        self._is_lethal = False
        self._enough = threading.Event()
        self._counting = threading.Lock()

    @property
    def acknowledged(self) -> int:
        """Operations that were."""
        return sum(worker.ledger.done for worker in self.workers)

    def work(self, steps: int, then: Callable[[], object] | None = None) -> None:
        """Have so many operations begun by all workers together; then call `then` while the last ones still go on,
        which may end as they like.

        Ends early for each worker who finds the daemon dead.
        """
        self._limit, self._begun = steps, 0
        self._is_lethal = then is not None
        self._enough.clear()
        with ThreadPoolExecutor(len(self.workers) + 1) as threads:
            waiting = threads.submit(self._call, then or _nothing)
            ended = [threads.submit(self._work, worker) for worker in self.workers]
            try:
                for one in ended:
                    one.result()
            finally:
                self._enough.set()
            waiting.result()

    def hear_nothing_more(self) -> None:
        """What is acknowledged after the power went counts for nothing, until the next judgement."""
        for worker in self.workers:
            worker.ledger.is_closed = True

    def refused_for_no_reason(self) -> list[str]:
        """What a living daemon refused, and forget it. That a look has settled a parent is a reason."""
        odd = [f"{who}: {error}" for who, error in self.refused if error.errno != errno.EBUSY]
        self.refused.clear()
        return odd

    def _call(self, then: Callable[[], object]) -> None:
        self._enough.wait()
        then()

    def _work(self, worker: Worker) -> None:
        while self._may_go_on():
            try:
                self._step(worker)
            except OSError:
                if not self._is_over():
                    raise
                return

    def _step(self, worker: Worker) -> None:
        try:
            worker.step()
        except OSError as error:
            if error.errno in GONE or self._is_over():
                raise
            self.refused.append((type(worker).__name__, error))
            # Refused by a daemon that lives: it did not happen, or it happened whole, and that can be seen at once.
            worker.ledger.note(f"  refused: {errno.errorcode[error.errno or 0]} {error.filename}")
            worker.ledger.judge(self._look(type(worker).__name__, worker), refused=True)

    def _look(self, who: str, worker: Worker) -> Mapping[str, Fact]:
        """What a worker sees. A look may be refused too: by a thread of the daemon that has come to its number now."""
        for _ in range(_LOOKS):
            try:
                return worker.look()
            except OSError as error:
                if error.errno in GONE or self._is_over():
                    raise
                self.refused.append((who, error))
        return worker.look()

    def _is_over(self) -> bool:
        """Whether failures are no wonder any more: the daemon is dead, or about to be."""
        return (self._is_lethal and self._enough.is_set()) or not self._is_alive()

    def _may_go_on(self) -> bool:
        with self._counting:
            self._begun += 1
            if self._begun >= self._limit:
                self._enough.set()
            return self._begun <= self._limit

    def _is_alive(self) -> bool:
        return self.scene.mount.pid() is not None

    def judge(self, *, power_cut: bool = False) -> None:
        """Assert that what was acknowledged is there, the rest whole or absent, and the state directory sound."""
        try:
            for worker in self.workers:
                worker.ledger.judge(worker.look(), power_cut=power_cut)
            assert_sound(self.scene.mount.state)
        except AssertionError as error:
            error.add_note(traces(self.scene))
            raise


def _nothing() -> None:
    """What comes after work that ends by itself."""


def assert_sound(state: Path) -> None:
    """`imgfs check --deep` finds nothing, and nothing of an earlier daemon's lies under a temporary name."""
    with Examiner(state, TABLES.kept, deep=True) as examiner:
        found = [one for place in examiner.places() if (one := examiner.examine(place)) is not None]
    assert not found
    until(lambda: not left_behind(state))


def traces(scene: Scene) -> str:
    """What may tell why something is not there: the rows of snapshots, what is listed, and the end of the log."""
    with closing(open_read_only(scene.mount.state / FILE)) as db:
        rows = db.execute("SELECT number, kind, name, parent FROM user_snapshots").fetchall()
    log = (scene.mount.state / "log").read_text(errors="replace").splitlines()[-30:]
    return "\n".join(["rows:", *map(str, rows), "listed:", *sorted(os.listdir(scene.mount.snapshots)), "log:", *log])


def left_behind(state: Path) -> list[str]:
    """Temporary names, wherever one can be; and directories without a tar, record or row."""
    places = [*state.glob(f"{TEMPORARY}*"), *state.glob(f"*/{TEMPORARY}*"), *state.glob(f"*/*/{TEMPORARY}*")]
    return sorted(map(str, places))


def start(scene: Scene) -> float:
    """Start the daemon; how many seconds it took."""
    began = time.monotonic()
    scene.mount.start()
    return time.monotonic() - began


def assert_bounded(scene: Scene) -> None:
    """Nothing on disk belongs to what is not there any more: so many crashes leave no more than one."""
    state, snapshots = scene.mount.state, scene.mount.snapshots
    own = [name for name in os.listdir(snapshots) if ":" not in name and not (snapshots / name).is_symlink()]
    directories = len(own) - len(["active"]) + len(["empty"]) + len(os.listdir(snapshots / "active"))
    until(lambda: len(os.listdir(state / "snapshots")) == directories)
    assert len(os.listdir(state / "ingest")) == len(os.listdir(scene.mount.content / "ingest"))
    assert bytes_of(state) < ROOM


def bytes_of(state: Path) -> int:
    """What a state directory takes on disk."""
    return sum(os.lstat(path).st_blocks * 512 for path in state.rglob("*"))
