"""kill -9 at random times, repeatedly on one state directory: nothing acknowledged is ever lost.

`./scripts/test tests/crashes/test_random_kills.py --crashes 200 -s` is the full run.
"""

from __future__ import annotations

import random

import pytest

from tests.crashes.crew import Crew, assert_bounded, bytes_of, start
from tests.crashes.figures import FIGURES
from tests.crashes.strikes import kill
from tests.mount.scene import Scene

A_FEW = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(metafunc.config.getoption("--crashes") or A_FEW))


def test_random_kills_lose_nothing_acknowledged(scene: Scene, crew: Crew, seed: int, number: int) -> None:
    chance = random.Random(f"{seed} {number}")
    before = crew.acknowledged
    crew.work(chance.randrange(20, 400), lambda: kill(scene.mount))
    FIGURES.took("start after a crash", start(scene))
    crew.judge()
    assert_bounded(scene)
    assert not crew.refused_for_no_reason()
    FIGURES.counts["acknowledged operations"] += crew.acknowledged - before
    FIGURES.counts["bytes of the state directory at the end"] = bytes_of(scene.mount.state)
