"""Fixtures that every test may ask for: registries, mounts, and the certainty that nothing stays mounted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import Mounted

# No test asserts a time, and two processes share the machine.
settings.register_profile("imgfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("imgfs")


# A shell has what it puts in the background ignore Ctrl-C, and whoever is begun by that inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--crashes 300` is an hour of tests/crashes; without it there are as many as a run of all tests can bear."""
    parser.addoption("--crashes", type=int, default=None, metavar="N", help="crashes of each kind in tests/crashes")
    parser.addoption("--crash-seed", type=int, default=1, metavar="SEED", help="where their chance comes from")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """An in-process registry on loopback that counts requests and does what a test scripts."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A real mount of an empty state directory, by a real daemon."""
    with Mounted(tmp_path) as mount:
        mount.start()
        yield mount
