"""The number of crashes (a few by default, hundreds by option) and the seed, which an option may set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashes.crew import Crew
from tests.crashes.figures import FIGURES
from tests.mount.scene import Scene, serving


@pytest.fixture(scope="module")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of all random choices."""
    return int(request.config.getoption("--crash-seed"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("crashes")) as made:
        yield made


@pytest.fixture(scope="module")
def crew(scene: Scene, seed: int) -> Crew:
    """Workers on one state directory, which is used through all crashes of a module."""
    return Crew(scene, seed)


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Report the figures at the end. They are not asserted; `pytest -s` shows them."""
    FIGURES.clear()
    yield
    for line in FIGURES.lines():
        print(f"{Path(request.node.name).name}: {line}")
