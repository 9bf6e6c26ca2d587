"""A registry to ask, one that answers, and a clock that only moves when a test or a wait moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from trio.testing import MockClock

from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import Scene


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def guarded() -> Iterator[FakeRegistry]:
    """A registry that wants bearer tokens."""
    with FakeRegistry(token=True) as fake:
        yield fake


@pytest.fixture
def storage() -> Iterator[FakeRegistry]:
    """Where a registry redirects to: another origin."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def scene(mock_clock: MockClock, fake: FakeRegistry) -> AsyncIterator[Scene]:
    """A test must ask for `mock_clock` itself: the run takes its clock from there."""
    scene = Scene(mock_clock, fake)
    async with scene.registry:
        yield scene
