"""A scene for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.testing.registry import FakeRegistry
from imgfs.testing.uploads import PushRegistry
from tests.transfer.outward import Outward
from tests.transfer.scene import Scene, opened


@pytest.fixture
async def scene(tmp_path: Path, registry: FakeRegistry, mock_clock: MockClock) -> AsyncIterator[Scene]:
    async with opened(tmp_path / "state", registry, mock_clock) as scene:
        yield scene


@pytest.fixture
def source() -> Iterator[PushRegistry]:
    with PushRegistry() as source:
        yield source


@pytest.fixture
def target() -> Iterator[PushRegistry]:
    with PushRegistry() as target:
        yield target


@pytest.fixture
async def outward(
    tmp_path: Path, source: PushRegistry, target: PushRegistry, mock_clock: MockClock
) -> AsyncIterator[Outward]:
    async with opened(tmp_path / "state", source, mock_clock) as scene:
        yield Outward(scene, source, target)


@pytest.fixture
async def within(tmp_path: Path, source: PushRegistry, mock_clock: MockClock) -> AsyncIterator[Outward]:
    """Pushes from one repository of a registry to another repository of the same registry."""
    async with opened(tmp_path / "state", source, mock_clock) as scene:
        yield Outward(scene, source, source)
