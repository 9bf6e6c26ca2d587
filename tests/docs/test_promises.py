"""docs/reference/promises.md names tests that exist, and every promise has one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/promises.md"
ROW = re.compile(r"^\| (?!promise |-)(.+) \| (.+) \|$", re.MULTILINE)


def rows() -> list[tuple[str, list[str]]]:
    """Each promise with its tests: `path` or `path::function`."""
    return [(promise, re.findall(r"`([^`]+)`", tests)) for promise, tests in ROW.findall(PAGE.read_text())]


def functions(path: Path) -> set[str]:
    """The tests that pytest collects from a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def complaint(test: str) -> str | None:
    """What is wrong with the name of a test."""
    name, _, function = test.partition("::")
    path = ROOT / name
    if not name.startswith("tests/") or not path.is_file():
        return f"{name} does not exist"
    found = functions(path)
    if not found or (function and function not in found):
        return f"{test}: no such test"
    return None


def test_every_promise_has_tests_that_exist() -> None:
    table = rows()
    assert len(table) > 40
    assert not [promise for promise, tests in table if not tests]
    assert not [wrong for _, tests in table for test in tests if (wrong := complaint(test))]


def test_a_test_that_is_gone_is_found() -> None:
    assert complaint("tests/docs/test_gone.py")
    assert complaint("tests/docs/test_promises.py::test_gone")
    assert not complaint("tests/docs/test_promises.py::test_a_test_that_is_gone_is_found")
