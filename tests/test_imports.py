"""The import order: a package imports only from lower storeys, and each external library has one importing package."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "imgfs"

STOREYS = [
    {"errors"},
    {"oci"},
    {"erofs"},
    {"aio", "disk", "encoding", "filename", "metrics", "mountpoint", "private_parts", "spelling", "state"},
    {"log", "lock", "config", "database", "notify"},
    {"failures", "plugins"},
    {"content", "registry", "kernel"},
    {"layers"},
    {"images", "archives"},
    {"leases", "execution"},
    {"snapshots"},
    {"rootfs", "rescue"},
    {"transfer"},
    {"gc", "check", "doctor"},
    {"fs"},
    {"figures"},
    {"assembly"},
    {"daemon"},
    {"cli"},
    {"forkserver"},
    {"testing"},
]
"""Packages by storey, from bottom to top. Packages of one storey do not import each other, not even for types."""

BLIND = {
    ("layers", "registry"),
    ("images", "registry"),
    ("archives", "registry"),
    ("snapshots", "registry"),
    ("fs", "registry"),
}
"""Imports that are forbidden although the order would allow them: only transfer/ and the daemon use registry/."""

LIBRARIES = {"httpx": "registry", "httpcore": "registry", "pyfuse3": "fs", "ctypes": "kernel"}

ONE_CONCEPT = {
    "ImageStatus": "an image's status.json, as transfer/ makes it and as the command line reads it",
    "Mended": "one repaired object, as check/ reports it and as the command line reads it",
    "Extent": "a range of a file's data, as layers/ records it and as erofs/ needs it",
    "Info": "one snapshot, as a row of the database and as the library shows it",
}
"""Classes of the same concept in several modules, with the concept."""

HEIGHT = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}


def modules() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    )


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def complaint(room: str, name: str) -> str | None:
    """Return why `room` may not import `name`, or None."""
    top, *rest = name.split(".")
    if top in LIBRARIES and room != LIBRARIES[top]:
        return f"only {LIBRARIES[top]}/ may import {top}"
    if top != "imgfs" or not rest or rest[0].startswith("__") or rest[0] == room:
        return None
    if rest[0] not in HEIGHT:
        return f"{rest[0]} has no storey in this table"
    if HEIGHT[rest[0]] >= HEIGHT[room] or (room, rest[0]) in BLIND:
        return f"{room} may not import {rest[0]}"
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_libraries_stay_in_their_room(path: Path) -> None:
    room = room_of(path)
    assert room in HEIGHT, f"{path}: the room {room} has no storey in this table"
    found = [(line, name, complaint(room, name)) for line, name in imported(path)]
    wrong = [f"{path}:{line}: {name}: {why}" for line, name, why in found if why]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "name"),
    [
        ("oci", "imgfs.aio.flight"),
        ("content", "imgfs.registry.client"),
        ("fs", "httpx"),
        ("daemon", "pyfuse3.asyncio"),
        ("transfer", "imgfs.fs.node"),
        ("fs", "imgfs.registry.client"),
        ("errors", "imgfs.nowhere"),
    ],
)
def test_the_import_rules_reject_wrong_imports(room: str, name: str) -> None:
    assert complaint(room, name)


def entry_points() -> dict[str, str]:
    """Return the entry points of imgfs's own plugins by name: `imgfs.<room>.plugin:NAME`."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    return project["entry-points"]["imgfs.plugins"]


def test_nothing_imports_a_concrete_plugin_but_its_entry_point() -> None:
    """A `plugin.py` may be imported for the kinds that it declares, never for its Plugin objects."""
    concrete = {value.replace(":", ".") for value in entry_points().values()}
    wrong = [
        f"{path}:{line}: {name}" for path in modules() for line, name in imported(path) if _is_concrete(name, concrete)
    ]
    assert not wrong, "\n".join(wrong)


def _is_concrete(name: str, concrete: set[str]) -> bool:
    modules = {one.rpartition(".")[0] for one in concrete}
    return name in concrete or name in modules or (name.endswith(".*") and name[:-2] in modules)


def test_every_plugin_of_a_room_has_its_entry_point() -> None:
    declared = {
        f"imgfs.{path.parent.name}.plugin:{target.id}"
        for path in PACKAGE.glob("*/plugin.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and ast.unparse(node.value.func) == "Plugin"
    }
    assert declared == set(entry_points().values())


def test_a_class_name_has_one_meaning() -> None:
    """Public classes of different modules have different names, so that a search finds one class."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in ONE_CONCEPT}
    assert not twice
