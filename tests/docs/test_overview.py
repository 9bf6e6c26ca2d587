"""ARCHITECTURE.md, README.md and the list of decisions are complete and short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_imports import STOREYS

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DECISIONS = ROOT / "docs/decisions"


@pytest.mark.parametrize(("name", "most"), [("README.md", 120), ("ARCHITECTURE.md", 150)])
def test_a_page_that_everybody_reads_is_short(name: str, most: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_every_room_has_a_row() -> None:
    rows = "\n".join(re.findall(r"^\| `(.*?) \|", ARCHITECTURE, re.MULTILINE))
    named = set(re.findall(r"[a-z_]+", rows))
    assert not {room for rooms in STOREYS for room in rooms} - named


def test_every_page_of_the_architecture_is_linked() -> None:
    linked = set(re.findall(r"\(docs/architecture/([\w-]+)\.md\)", ARCHITECTURE))
    assert linked == {page.stem for page in (ROOT / "docs/architecture").glob("*.md")}


def test_decisions_are_numbered_dated_and_listed() -> None:
    pages = sorted(page for page in DECISIONS.glob("*.md") if page.name != "README.md")
    listed = re.findall(r"^\| (\d+) \| ([\d-]+) \| \[(.+)\]\((.+)\) \|$", (DECISIONS / "README.md").read_text(), re.M)
    found: list[tuple[str, str, str, str]] = []
    for page in pages:
        number, title = re.findall(r"\A# (\d+)\. (.+)$", page.read_text(), re.MULTILINE)[0]
        (date,) = re.findall(r"^Date: (\d{4}-\d\d-\d\d)\. Status: ", page.read_text(), re.MULTILINE)
        found.append((number, date, title, page.name))
    assert listed == found
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    assert all(name.startswith(f"{int(number):04d}-") for number, _, _, name in found)
