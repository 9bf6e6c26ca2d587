"""Challenges that lead clients to forbidden hosts. The tests are in alone_hostile_realms.py, in a network namespace."""

from __future__ import annotations

from pathlib import Path

from tests.support.isolation import run_alone


def test_hostile_realms_reach_no_trap() -> None:
    run_alone(Path(__file__).with_name("alone_hostile_realms.py"))
