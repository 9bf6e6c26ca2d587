"""Challenges that send clients where they must not go; see alone_hostile_realms.py, which runs without a network."""

from __future__ import annotations

from pathlib import Path

from tests.support.isolation import run_alone


def test_hostile_realms_reach_nobody() -> None:
    run_alone(Path(__file__).with_name("alone_hostile_realms.py"))
