"""What every test of the rootfs room needs: a kernel that mounts nothing, and a state directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.rootfs.fakes import FakeKernel
from tests.rootfs.scene import Scene


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """In the place of the real one."""
    return FakeKernel().install(monkeypatch)


@pytest.fixture
async def scene(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Scene]:
    """A state directory with nothing in it."""
    made = Scene(tmp_path, nursery)
    yield made
    made.database.close()
