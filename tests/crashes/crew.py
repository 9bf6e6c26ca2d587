"""All workers together: they work until the daemon dies or the work is done, and are then judged."""

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
"""More bytes than all workers ever have at once: two times twelve blobs of 1.5 MB, and small files."""


_LOOKS = 5
"""More refusals in a row count as an error: a few threads cannot meet so many by chance."""


class Crew:
    """One worker of each kind, and two for ingests.

    `refused` collects the errors of a living daemon: worker and error.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        """Pull the base image. The daemon must run."""
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
        """The number of acknowledged operations."""
        return sum(worker.ledger.done for worker in self.workers)

    def work(self, steps: int, then: Callable[[], object] | None = None) -> None:
        """Let all workers together begin this many operations, then call `then` while the last operations still run.

        The last operations may succeed or fail. A worker stops early if it finds the daemon dead.
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
        """Ignore acknowledgements until the next judgement. Call this before the power is cut."""
        for worker in self.workers:
            worker.ledger.is_closed = True

    def refused_for_no_reason(self) -> list[str]:
        """Return the errors of a living daemon and forget them, except those with a reason: a look can fix a parent."""
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
            # The living daemon refused the operation: it is done wholly or not at all, which can be checked at once.
            worker.ledger.note(f"  refused: {errno.errorcode[error.errno or 0]} {error.filename}")
            worker.ledger.judge(self._look(type(worker).__name__, worker), refused=True)

    def _look(self, who: str, worker: Worker) -> Mapping[str, Fact]:
        """Return what a worker sees.

        A look may be refused too, if a daemon's thread only now reaches its struck call.
        """
        for _ in range(_LOOKS):
            try:
                return worker.look()
            except OSError as error:
                if error.errno in GONE or self._is_over():
                    raise
                self.refused.append((who, error))
        return worker.look()

    def _is_over(self) -> bool:
        """Return whether failures are expected from now on: the daemon is dead, or about to be killed."""
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
        """Assert that acknowledged operations hold, all others are whole or absent, and the state is sound."""
        try:
            for worker in self.workers:
                worker.ledger.judge(worker.look(), power_cut=power_cut)
            assert_sound(self.scene.mount.state)
        except AssertionError as error:
            error.add_note(traces(self.scene))
            raise


def _nothing() -> None:
    """Do nothing after the work."""


def assert_sound(state: Path) -> None:
    """Assert that `imgfs check --deep` finds nothing, and that earlier daemons left no temporary names."""
    with Examiner(state, TABLES.kept, deep=True) as examiner:
        found = [one for place in examiner.places() if (one := examiner.examine(place)) is not None]
    assert not found
    until(lambda: not left_behind(state))


def traces(scene: Scene) -> str:
    """Return hints why something is missing: the rows of snapshots, the listings, and the end of the log."""
    with closing(open_read_only(scene.mount.state / FILE)) as db:
        rows = db.execute("SELECT number, kind, name, parent FROM user_snapshots").fetchall()
    log = (scene.mount.state / "log").read_text(errors="replace").splitlines()[-30:]
    return "\n".join(["rows:", *map(str, rows), "listed:", *sorted(os.listdir(scene.mount.snapshots)), "log:", *log])


def left_behind(state: Path) -> list[str]:
    """Return temporary names wherever they can be, and directories without a tar, record or row."""
    places = [*state.glob(f"{TEMPORARY}*"), *state.glob(f"*/{TEMPORARY}*"), *state.glob(f"*/*/{TEMPORARY}*")]
    return sorted(map(str, places))


def start(scene: Scene) -> float:
    """Start the daemon, and return the seconds until it answers."""
    began = time.monotonic()
    scene.mount.start()
    return time.monotonic() - began


def assert_bounded(scene: Scene) -> None:
    """Assert that everything on disk belongs to something that exists: many crashes leave no more than one crash."""
    state, snapshots = scene.mount.state, scene.mount.snapshots
    own = [name for name in os.listdir(snapshots) if ":" not in name and not (snapshots / name).is_symlink()]
    directories = len(own) - len(["active"]) + len(["empty"]) + len(os.listdir(snapshots / "active"))
    until(lambda: len(os.listdir(state / "snapshots")) == directories)
    assert len(os.listdir(state / "ingest")) == len(os.listdir(scene.mount.content / "ingest"))
    assert bytes_of(state) < ROOM


def bytes_of(state: Path) -> int:
    """Return the bytes that a state directory takes on disk."""
    return sum(os.lstat(path).st_blocks * 512 for path in state.rglob("*"))
