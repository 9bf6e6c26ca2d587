"""Run alone_dead_names.py in isolation: host names that no name server answers for."""

from __future__ import annotations

from pathlib import Path

from tests.support.isolation import run_alone


def test_silent_name_server_does_not_delay_other_requests() -> None:
    run_alone(Path(__file__).with_name("alone_dead_names.py"), "--mount")
