"""A registry that accepts pushes, and a client that pushes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from trio.testing import MockClock

from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import Pushing


@pytest.fixture
def fake() -> Iterator[PushRegistry]:
    with PushRegistry() as fake:
        yield fake


@pytest.fixture
async def pushing(mock_clock: MockClock, fake: PushRegistry) -> AsyncIterator[Pushing]:
    """A test must request `mock_clock` itself, because the trio run takes its clock from the test's fixtures."""
    pushing = Pushing(mock_clock, fake)
    async with pushing.registry:
        yield pushing
