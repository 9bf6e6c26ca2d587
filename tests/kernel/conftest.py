"""Fixture: a directory for mounts that is unmounted after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mounts_below, unmount


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory. Everything below it is unmounted after the test."""
    yield tmp_path
    for mount in mounts_below(str(tmp_path)):
        unmount(mount.mountpoint, detach=True)
