"""Fixtures: state directories to damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.registry import FakeRegistry
from tests.check.scene import Damage, furnish, put_back
from tests.support.mounted import Mounted


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damage]:
    """An unmounted state directory with one object of each kind. Tests do not change it."""
    with FakeRegistry() as registry, Mounted(tmp_path_factory.mktemp("check")) as mounted:
        mounted.start()
        made = furnish(mounted, registry)
        mounted.stop()
        yield made


@pytest.fixture
def unmounted(furnished: Damage, tmp_path: Path) -> Iterator[Damage]:
    """A fresh copy of `furnished` for each test, not mounted."""
    with Mounted(tmp_path) as mounted:
        put_back(furnished.state, mounted.state)
        yield Damage(mounted, furnished.registry)
