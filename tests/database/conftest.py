"""Fixture: an open database with the test table of `facts`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.database.database import Database
from tests.database.facts import SCHEMA


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    yield opened
    opened.close()
