"""The disk refuses one system call: the operation fails with the contract's errno, and nothing is lost.

Every call that changes the state directory is refused with each error, once in each thread, at a number drawn from the
seed. `./scripts/test tests/crashes/test_storage_errors.py --crashes 100 -s` draws 100 numbers for every call.
"""

from __future__ import annotations

import errno
import random

import pytest

from tests.crashes.crew import Crew, assert_bounded
from tests.crashes.figures import FIGURES
from tests.crashes.strikes import STORAGE_CALLS, kill, refusing, said_by, traced
from tests.mount.scene import Scene

STEPS = 120
ERRORS = ("EIO", "ENOSPC", "EDQUOT")
A_FEW = ("fsync", "fdatasync", "rename", "pwrite64")
ALLOWED = {"EIO": {errno.EIO}, "ENOSPC": {errno.ENOSPC, errno.EIO}, "EDQUOT": {errno.ENOSPC, errno.EIO}}
"""SQLite does not report why a sync failed, so the error for a row may be EIO although the disk is full."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "refusal" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("--crashes")
        chosen = [(call, error, 0) for call, error in zip(A_FEW, ERRORS * 2, strict=False)]
        if rounds:
            chosen = [(call, error, number) for number in range(rounds) for call in STORAGE_CALLS for error in ERRORS]
        metafunc.parametrize("refusal", chosen, ids=lambda one: "-".join(map(str, one)))


def test_a_storage_error_is_reported_and_loses_nothing(
    scene: Scene, crew: Crew, seed: int, refusal: tuple[str, str, int]
) -> None:
    call, error, number = refusal
    when = random.Random(f"{seed} {call} {error} {number}").choice([1, 2, 3, 5, 8, 13, 21])
    kill(scene.mount)
    crew.refused.clear()
    with traced(scene.mount, *refusing(call, error, when)) as tracer:
        started = tracer.poll() is None
        if started:
            crew.work(STEPS)
            assert scene.mount.pid() is not None, scene.mount.log()[-2000:]
            scene.mount.stop()
    if not started:
        assert_told(scene)
    allowed = ALLOWED[error] | {errno.EBUSY}
    odd = [f"{who}: {refused}" for who, refused in crew.refused if refused.errno not in allowed]
    FIGURES.counts[f"{call} {error}"] += len(crew.refused)
    FIGURES.counts["daemons that did not start, and said why"] += not started
    assert not odd
    scene.mount.start()
    crew.judge(power_cut=True)
    assert_bounded(scene)


def assert_told(scene: Scene) -> None:
    """Assert that a daemon that cannot start reports the reason in a sentence."""
    said = said_by(scene.mount).read_text()
    assert "imgfs: " in said, said[-2000:]
    assert "Traceback" not in said, said[-2000:]
