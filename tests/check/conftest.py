"""State directories to damage: one that is mounted, one that is not and is as new for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.registry import FakeRegistry
from tests.check.scene import Damage, furnish, put_back
from tests.support.mounted import Mounted


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damage]:
    """One of everything, unmounted."""
    with FakeRegistry() as registry, Mounted(tmp_path_factory.mktemp("check")) as mounted:
        mounted.start()
        made = furnish(mounted, registry)
        mounted.stop()
        yield made


@pytest.fixture
def unmounted(furnished: Damage, tmp_path: Path) -> Iterator[Damage]:
    """A copy of it."""
    with Mounted(tmp_path) as mounted:
        put_back(furnished.state, mounted.state)
        yield Damage(mounted, furnished.registry)
