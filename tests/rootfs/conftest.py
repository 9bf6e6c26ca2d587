"""What every test of the rootfs room needs: a kernel that mounts nothing, and a state directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.rootfs.fakes import FakeKernel
from tests.rootfs.scene import Scene


@pytest.fixture
def kernel() -> FakeKernel:
    """In the place of the real one."""
    return FakeKernel()


@pytest.fixture
async def scene(tmp_path: Path, kernel: FakeKernel, nursery: trio.Nursery) -> AsyncIterator[Scene]:
    """A state directory with nothing in it."""
    made = Scene(tmp_path, kernel, nursery)
    yield made
    made.database.close()
