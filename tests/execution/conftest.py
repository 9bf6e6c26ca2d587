"""One mount for all container tests. Each test must leave it empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.execution.box import Box, boxed, fake_runtime, set_quirks


@pytest.fixture(scope="session")
def _box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with boxed(tmp_path_factory.mktemp("containers")) as box:
        yield box


@pytest.fixture
def box(_box: Box) -> Iterator[Box]:
    """A mount with images, and a real runtime."""
    yield _box
    _box.take_away()


@pytest.fixture(scope="session")
def _faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, Path]]:
    directory = tmp_path_factory.mktemp("faked")
    runtime = fake_runtime(directory / "runtime")
    config = f'[plugins.execution.oci]\nruntime = "{runtime}"\ndeadline_seconds = 1.5\nlog_bytes = 4096\n'
    with boxed(directory, config) as box:
        yield box, runtime


@pytest.fixture
def faked(_faked: tuple[Box, Path]) -> Iterator[Box]:
    """A mount with images, and a runtime without isolation: it runs programs of the test machine."""
    box, runtime = _faked
    yield box
    set_quirks(runtime)
    box.take_away()


@pytest.fixture
def runtime(_faked: tuple[Box, Path]) -> Path:
    """The runtime of `faked`."""
    return _faked[1]
