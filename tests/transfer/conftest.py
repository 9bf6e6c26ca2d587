"""A scene for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.testing.registry import FakeRegistry
from tests.transfer.scene import Scene, opened


@pytest.fixture
async def scene(tmp_path: Path, registry: FakeRegistry, mock_clock: MockClock) -> AsyncIterator[Scene]:
    async with opened(tmp_path / "state", registry, mock_clock) as scene:
        yield scene
