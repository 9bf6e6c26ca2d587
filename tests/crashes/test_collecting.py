"""Garbage collection in a loop while all workers work: nothing that a root reaches is ever missing."""

from __future__ import annotations

from tests.crashes.crew import Crew, assert_bounded
from tests.crashes.figures import FIGURES
from tests.mount.scene import Scene

STEPS = 900


def test_nothing_that_a_root_reaches_is_ever_missing(scene: Scene, crew: Crew) -> None:
    """Workers that pull, lease and view images read them again and again, without the registry."""
    crew.work(STEPS)
    assert not crew.refused_for_no_reason()
    crew.judge()
    assert_bounded(scene)
    collected = next(worker for worker in crew.workers if type(worker).__name__ == "Collector")
    assert collected.ledger.done
    FIGURES.counts["collections"] = collected.ledger.done
    FIGURES.counts["operations"] = crew.acknowledged
