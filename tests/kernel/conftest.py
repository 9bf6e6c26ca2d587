"""A place to mount in that is empty again after each test, whatever it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mounts_below, unmount


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory below which everything is unmounted in the end."""
    yield tmp_path
    for mount in mounts_below(str(tmp_path)):
        unmount(mount.mountpoint, detach=True)
