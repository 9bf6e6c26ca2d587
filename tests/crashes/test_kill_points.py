"""kill -9 at system calls from the first one of the daemon: acknowledged operations stay, others are whole or absent.

All kills share one state directory, so a kill also strikes the start after the previous crash. Each kill point is a
call and its number in a thread. The seed draws it from the calls of a run without a kill. `./scripts/test
tests/crashes/test_kill_points.py --crashes 300 -s` is the full run.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.crashes.crew import Crew, assert_bounded, start
from tests.crashes.figures import FIGURES
from tests.crashes.strikes import CALLS, counted, counting, kill, killing, traced
from tests.mount.scene import Scene

A_FEW = 8
STEPS = 150
"""Operations of all workers together while calls are counted. The kill must strike within twice as many."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "point" in metafunc.fixturenames:
        metafunc.parametrize("point", range(metafunc.config.getoption("--crashes") or A_FEW))


@pytest.fixture(scope="module")
def calls(scene: Scene, crew: Crew) -> Counter[str]:
    """Count how often the busiest thread of a daemon makes each call, from its start to the end of the work."""
    kill(scene.mount)
    record = scene.mount.path.parent / "strace"
    with traced(scene.mount, *counting(record)):
        crew.work(STEPS)
    return counted(record)


def test_a_kill_at_any_call_loses_nothing_acknowledged(
    scene: Scene, crew: Crew, calls: Counter[str], seed: int, point: int
) -> None:
    chance = random.Random(f"{seed} {point}")
    call = [one for one in CALLS if calls[one]][point % sum(calls[one] > 0 for one in CALLS)]
    number = round(calls[call] ** chance.random())  # as many points among the first ten as among the first hundred
    kill(scene.mount)
    survived: list[bool] = []
    with traced(scene.mount, *killing(call, number)) as tracer:
        struck_early = tracer.poll() is not None
        if not struck_early:
            crew.work(2 * STEPS, lambda: survived.append(kill(scene.mount)))
    struck = struck_early or not survived[0]
    FIGURES.counts["killed at its start" if struck_early else "killed at work" if struck else "killed afterwards"] += 1
    FIGURES.counts[f"  at {call}"] += struck
    FIGURES.took("start after a crash", start(scene))
    crew.judge()
    assert_bounded(scene)
    assert not crew.refused_for_no_reason()


def test_most_of_the_points_were_reached() -> None:
    """Otherwise the tests above test something else."""
    counts = FIGURES.counts
    struck = counts["killed at its start"] + counts["killed at work"]
    assert struck > counts["killed afterwards"]
