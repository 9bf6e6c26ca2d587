"""Fixtures of the rootfs tests: a fake kernel and a state directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.rootfs.fakes import FakeKernel
from tests.rootfs.scene import Scene


@pytest.fixture
def kernel() -> FakeKernel:
    """A fake kernel, used instead of the real one."""
    return FakeKernel()


@pytest.fixture
async def scene(tmp_path: Path, kernel: FakeKernel, nursery: trio.Nursery) -> AsyncIterator[Scene]:
    """An empty state directory."""
    made = Scene(tmp_path, kernel, nursery)
    yield made
    made.database.close()
