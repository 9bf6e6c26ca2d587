"""The options of plugins: the table `plugins.<kind>.<id>` of imgfs.toml, read as the plugin's own struct.

The table has a name of its own, because a kind may be called like an option of the daemon.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping

import msgspec

from imgfs.config.toml import dotted, written
from imgfs.errors import Invalid
from imgfs.plugins.contract import Plugin

Sections = Mapping[str, Mapping[str, Mapping[str, object]]]
"""What imgfs.toml says below `plugins`: options by kind and id."""


def check_names(sections: Sections, disabled: Collection[str], known: Collection[str]) -> None:
    """Raise Invalid, with the likely spelling, where a section or `disabled` names no plugin that is installed."""
    for name in _names(sections):
        if name not in known:
            raise Invalid(f"imgfs.toml: [plugins.{name}]: no such plugin is installed; {_hint(name, known)}")
    for name in disabled:
        if name not in known:
            raise Invalid(f"imgfs.toml: disabled_plugins: {name!r} is not installed; {_hint(name, known)}")


def read_options(plugin: Plugin[object], sections: Sections) -> msgspec.Struct | None:
    """The options of a plugin; None where it has none. Raises Invalid for an unknown or a wrong one."""
    section = sections.get(plugin.kind.name, {}).get(plugin.id, {})
    known = [field.name for field in msgspec.structs.fields(plugin.options)] if plugin.options else []
    for key in section:
        if key not in known:
            hint = _hint(key, known) if known else "it has none"
            raise Invalid(f"imgfs.toml: [plugins.{plugin.name}]: unknown option {key!r}; {hint}")
    if plugin.options is None:
        return None
    try:
        return msgspec.convert(section, plugin.options)
    except msgspec.ValidationError as error:
        raise Invalid(f"imgfs.toml: [plugins.{plugin.name}]: {error}") from None


def render(facts: Mapping[str, object]) -> str:
    """Facts as TOML, one a line. What TOML cannot say is a text that says it."""
    return "".join(f"{dotted([key])} = {written(value)}\n" for key, value in facts.items())


def _names(sections: Sections) -> Iterator[str]:
    return (f"{kind}.{one}" for kind, section in sections.items() for one in section)


def _hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
