"""Every pointer in a page, docstring or comment leads to a file, a section or a module that exists."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HISTORY = {"CHANGELOG.md"}
"""Pages about the past, which may name files that are gone."""
FOREIGN = {
    "annotations.md",
    "config-linux.md",
    "config.md",
    "descriptor.md",
    "docs/garbage-collection.md",
    "docs/hosts.md",
    "image-index.md",
    "image-layout.md",
    "layer.md",
    "manifest.md",
    "media-types.md",
    "runtime.md",
    "spec.md",
}
"""Files of specifications, and of containerd, that docstrings name as their source."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./<>*{-])((?:[\w.-]+/)*[\w-]+\.(?:py|md))(?![\w/])(?:, \"([^\"]+)\")?")
PLACE = re.compile(r"(?<![\w./-])((?:tests|docs|scripts|systemd)/[\w./-]*[\w/])")
MODULE = re.compile(r"(?<![\w./])imgfs(?!\.(?:db|copy|toml|service)\b)(?:\.[A-Za-z_]\w*){2,}")


@cache
def files() -> list[str]:
    """Everything in the repository, by path from its root."""
    kept = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in kept if not path.parts[0].startswith(".") and "__pycache__" not in path.parts]


def pages() -> list[str]:
    return [name for name in files() if name.endswith(".md") and name not in HISTORY]


def sources() -> list[str]:
    return [name for name in files() if name.endswith(".py")]


@cache
def headings(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def anchor(heading: str) -> str:
    """The fragment that a heading gets on GitHub."""
    words = re.sub(r"\\|`|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def found(name: str, beside: str) -> list[str]:
    """The files that a pointer in the file `beside` may mean: by path from the root, from there, or by its end.

    A bare module name in a module means one of the same room, or one that is in no room.
    """
    here = str((ROOT / beside).parent.joinpath(name).resolve().relative_to(ROOT.resolve())) if "../" in name else name
    meant = [one for one in files() if one in (name, here) or one.endswith(f"/{name}")]
    room = Path(beside).parts[:2]
    if "/" in name or not (name.endswith(".py") and beside.endswith(".py")) or len(Path(beside).parts) < 3:
        return meant
    return [one for one in meant if len(Path(one).parts) < 3 or Path(one).parts[:2] == room]


def complaints(text: str, beside: str) -> Iterator[str]:
    """What is wrong with the pointers of one text."""
    for name, section in FILE.findall(text):
        if name in FOREIGN:
            continue
        meant = found(name, beside)
        if not meant:
            yield f"{beside}: {name} does not exist"
        elif section and not any(head.startswith(section) for one in meant for head in headings(one)):
            yield f"{beside}: {name} has no section {section!r}"
    for name in PLACE.findall(text):
        if name not in FOREIGN and not (ROOT / name).exists():
            yield f"{beside}: {name} does not exist"
    for name in MODULE.findall(text):
        if not is_importable(name):
            yield f"{beside}: {name} does not exist"


@cache
def is_importable(name: str) -> bool:
    """Whether it is a module, or a name in one."""
    module, _, last = name.rpartition(".")
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:
        pass
    try:
        return hasattr(importlib.import_module(module), last)
    except ModuleNotFoundError:
        return bool(module) and "." in module and is_importable(module)


def prose(source: str) -> Iterator[str]:
    """Docstrings, strings beside constants, and comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@pytest.mark.parametrize("page", pages())
def test_pointers_of_a_page(page: str) -> None:
    text = (ROOT / page).read_text()
    wrong = list(complaints(LINK.sub("", text), page))
    for target in LINK.findall(text):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists():
            wrong.append(f"{page}: {target} does not exist")
        elif fragment and fragment not in map(anchor, headings(str(there.resolve().relative_to(ROOT.resolve())))):
            wrong.append(f"{page}: {target}: no such section")
    assert not wrong


def test_pointers_of_docstrings_and_comments() -> None:
    assert not [
        one for name in sources() for text in prose((ROOT / name).read_text()) for one in complaints(text, name)
    ]


def test_a_dead_pointer_is_found() -> None:
    wrong = list(complaints('see transfer/no_such.py and ARCHITECTURE.md, "No such" and imgfs.no.such', "README.md"))
    assert len(wrong) == 3
