"""Names that no server answers for; see alone_dead_names.py, which runs without a network."""

from __future__ import annotations

from pathlib import Path

from tests.support.isolation import run_alone


def test_dead_names_hold_up_nobody() -> None:
    run_alone(Path(__file__).with_name("alone_dead_names.py"), "--mount")
