"""The start order of plugins: each plugin starts after everything it requires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import cast

from imgfs.errors import Invalid
from imgfs.plugins.contract import Kind, Plugin


def ordered(plugins: Iterable[Plugin[object]]) -> list[Plugin[object]]:
    """Return the plugins in start order, always the same for the same plugins.

    Raises Invalid for a cycle and names it.
    """
    by_name = {plugin.name: plugin for plugin in sorted(plugins, key=lambda plugin: plugin.name)}
    graph = {
        name: [one for need in plugin.requires for one in named(need, by_name)] for name, plugin in by_name.items()
    }
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        cycle = cast("Sequence[str]", error.args[1])  # each plugin is required by the next
        raise Invalid(
            f"plugins: {' requires '.join(reversed(cycle))}: no plugin of this cycle can start first; "
            "uninstall one of them, or name it in disabled_plugins of imgfs.toml"
        ) from None


def named(need: Kind[object] | str, present: Mapping[str, object]) -> Iterator[str]:
    """Return the names in `present` that fulfil a requirement."""
    if isinstance(need, str):
        return iter([need] if need in present else [])
    return (name for name in present if name.startswith(f"{need.name}."))
