"""Two mirrors in front of a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.testing.registry import FakeRegistry
from tests.registry.mirrors.hosts import HOST, fill, tables, write
from tests.registry.scene import Scene


@pytest.fixture
def first() -> Iterator[FakeRegistry]:
    """The first mirror in hosts.toml."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def second() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def scene(
    mock_clock: MockClock, fake: FakeRegistry, first: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> AsyncIterator[Scene]:
    """A scene in which HOST is `fake` and both mirrors have the same content."""
    write(tmp_path, fake, tables(first, second))
    scene = Scene(mock_clock, fake, host=HOST, hosts_path=[tmp_path])
    for mirror in (first, second):
        fill(mirror)
    async with scene.registry:
        yield scene
