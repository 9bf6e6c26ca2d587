"""Fixtures of the snapshot store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.snapshots.store import SnapshotStore

from .storing import Warehouse


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    """An empty store."""
    made = Warehouse(tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(warehouse: Warehouse) -> SnapshotStore:
    """The store of the warehouse, for tests that do not reopen it."""
    return warehouse.store
