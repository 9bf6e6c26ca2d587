"""Plugins for tests: their objects are strings; they are made in memory or installed as a distribution."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from imgfs.plugins.contract import Context, Kind, Making, Plugin
from imgfs.plugins.finding import FoundPlugin
from imgfs.plugins.options import Sections
from imgfs.plugins.started import Given, RunningPlugins
from imgfs.plugins.starting import started

WORD = Kind("word", str)
OTHER = Kind("other", str)
NUMBER = Kind("number", int)


def found(plugin: Plugin[object]) -> FoundPlugin:
    """Return the plugin as if it were installed."""
    return FoundPlugin(plugin.name, "test 1.0", plugin)


def broken(name: str, reason: str) -> FoundPlugin:
    """Return an installed plugin that cannot be loaded."""
    return FoundPlugin(name, "test 1.0", None, reason)


def word(
    one: str,
    *requires: Kind[object] | str,
    kind: Kind[str] = WORD,
    make: Making[str] | None = None,
    optional: bool = False,
) -> Plugin[str]:
    """Return a plugin whose object is its ID."""
    return Plugin(kind, one, make or (lambda _: one), requires=requires, optional=optional)


def failing(_: Context) -> str:
    """Options for the tests' plugins."""
    raise RuntimeError("no luck\nat all")


@asynccontextmanager
async def running(
    state: Path,
    *plugins: Plugin[object] | FoundPlugin,
    sections: Sections | None = None,
    given: Iterable[Given] = (),
) -> AsyncGenerator[RunningPlugins]:
    """Start these plugins."""
    all_found = [one if isinstance(one, FoundPlugin) else found(one) for one in plugins]
    async with started(all_found, sections or {}, [], state, given) as made:
        yield made


def install(directory: Path, name: str, code: str, *points: str) -> None:
    """Write a distribution as pip does: a module of the same name, and the entry points in `points`."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(code)
    facts = directory / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("\n".join(["[imgfs.plugins]", *points, ""]))
