"""Plugins for tests: of plain texts, in memory or installed as a distribution would be."""

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
    """As if it were installed."""
    return FoundPlugin(plugin.name, "test 1.0", plugin)


def broken(name: str, reason: str) -> FoundPlugin:
    """One that cannot be loaded."""
    return FoundPlugin(name, "test 1.0", None, reason)


def word(
    one: str,
    *requires: Kind[object] | str,
    kind: Kind[str] = WORD,
    make: Making[str] | None = None,
    optional: bool = False,
) -> Plugin[str]:
    """A plugin whose object is its id."""
    return Plugin(kind, one, make or (lambda _: one), requires=requires, optional=optional)


def failing(_: Context) -> str:
    """What a plugin may do."""
    raise RuntimeError("no luck\nat all")


@asynccontextmanager
async def running(
    state: Path,
    *plugins: Plugin[object] | FoundPlugin,
    sections: Sections | None = None,
    given: Iterable[Given] = (),
) -> AsyncGenerator[RunningPlugins]:
    """Start these."""
    all_found = [one if isinstance(one, FoundPlugin) else found(one) for one in plugins]
    async with started(all_found, sections or {}, [], state, given) as made:
        yield made


def install(directory: Path, name: str, code: str, *points: str) -> None:
    """Put a distribution there, as pip does: a module of the same name, and `points`, lines of the group."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(code)
    facts = directory / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("\n".join(["[imgfs.plugins]", *points, ""]))
