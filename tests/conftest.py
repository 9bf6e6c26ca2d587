"""Fixtures that every test may ask for: registries, mounts, and the certainty that nothing stays mounted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import Mounted


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
