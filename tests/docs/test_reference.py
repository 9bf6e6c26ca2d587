"""The generated pages of docs/reference/ say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["commands", "configuration", "errors", "metrics"]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_the_code_makes(reference: ModuleType, name: str) -> None:
    path = ROOT / f"docs/reference/{name}.md"
    made = reference.pages()[path]
    assert path.read_text() == made, f"{path.name} is out of date; run scripts/reference and commit the page"


def test_every_page_is_compared(reference: ModuleType) -> None:
    assert sorted(path.stem for path in reference.pages()) == NAMES
