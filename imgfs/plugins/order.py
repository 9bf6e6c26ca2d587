"""In which order plugins start: each after all that it requires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import cast

from imgfs.errors import Invalid
from imgfs.plugins.contract import Kind, Plugin


def ordered(plugins: Iterable[Plugin[object]]) -> list[Plugin[object]]:
    """`plugins` by dependency; the same ones come in the same order. Raises Invalid, naming a cycle's members."""
    by_name = {plugin.name: plugin for plugin in sorted(plugins, key=lambda plugin: plugin.name)}
    graph = {
        name: [one for need in plugin.requires for one in named(need, by_name)] for name, plugin in by_name.items()
    }
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        cycle = cast("Sequence[str]", error.args[1])  # each is required by the next
        raise Invalid(
            f"plugins: {' requires '.join(reversed(cycle))}: none can be the first; "
            "uninstall one, or name it in disabled_plugins of imgfs.toml"
        ) from None


def named(need: Kind[object] | str, present: Mapping[str, object]) -> Iterator[str]:
    """The names among `present` that a requirement means."""
    if isinstance(need, str):
        return iter([need] if need in present else [])
    return (name for name in present if name.startswith(f"{need.name}."))
