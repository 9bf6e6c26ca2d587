"""The options of plugins: the table `plugins.<kind>.<id>` of imgfs.toml, read as the plugin's own struct.

The table has a name of its own, because a kind may be called like an option of the daemon.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from imgfs.config.toml import dotted, written
from imgfs.errors import Invalid
from imgfs.plugins.contract import Plugin
from imgfs.spelling import hint

Sections = Mapping[str, Mapping[str, Mapping[str, object]]]
"""What imgfs.toml says below `plugins`: options by kind and id."""


Places = Mapping[str, str]
"""Where options stand, as `Settings.origins` has it: the daemon's by name, plugins' by `plugins.<kind>.<id>.<key>`."""
NOWHERE: Places = MappingProxyType({})


def check_names(
    sections: Sections, disabled: Collection[str], known: Collection[str], places: Places = NOWHERE
) -> None:
    """Raise Invalid, with the likely spelling, where a section or `disabled` names no plugin that is installed."""
    for name in _names(sections):
        if name not in known:
            place = _place(places, f"plugins.{name}.")
            raise Invalid(f"{place}: [plugins.{name}]: no such plugin is installed; {hint(name, known)}")
    for name in disabled:
        if name not in known:
            place = _place(places, "disabled_plugins")
            raise Invalid(f"{place}: disabled_plugins: {name!r} is not installed; {hint(name, known)}")


def read_options(plugin: Plugin[object], sections: Sections, places: Places = NOWHERE) -> msgspec.Struct | None:
    """The options of a plugin; None where it has none. Raises Invalid for an unknown or a wrong one."""
    section = sections.get(plugin.kind.name, {}).get(plugin.id, {})
    known = [field.name for field in msgspec.structs.fields(plugin.options)] if plugin.options else []
    for key in section:
        if key not in known:
            advice = hint(key, known) if known else "it has none"
            place = _place(places, dotted(("plugins", plugin.kind.name, plugin.id, key)))
            raise Invalid(f"{place}: [plugins.{plugin.name}]: unknown option {key!r}; {advice}")
    if plugin.options is None:
        return None
    try:
        return msgspec.convert(section, plugin.options)
    except msgspec.ValidationError as error:
        place = _place(places, f"plugins.{plugin.name}.{_key_of(str(error))}")
        raise Invalid(f"{place}: [plugins.{plugin.name}]: {error}") from None


def options_in_force(
    plugins: Iterable[Plugin[object]], sections: Sections, places: Places = NOWHERE
) -> dict[str, dict[str, object]]:
    """Every option of `plugins` as `sections` set it, by their names. Raises Invalid for an unknown or a wrong one."""
    read = {plugin.name: read_options(plugin, sections, places) for plugin in plugins}
    return {name: settings_of(options) for name, options in read.items()}


def settings_of(options: msgspec.Struct | None) -> dict[str, object]:
    """Options by their keys."""
    return msgspec.structs.asdict(options) if options is not None else {}


def render(facts: Mapping[str, object]) -> str:
    """Facts as TOML, one a line. What TOML cannot say is a text that says it."""
    return "".join(f"{dotted([key])} = {written(value)}\n" for key, value in facts.items())


def _place(places: Places, name: str) -> str:
    """Where `name` stands, or the first that begins so."""
    return next((place for option, place in places.items() if option.startswith(name)), "imgfs.toml")


def _key_of(error: str) -> str:
    """The option that a sentence of msgspec is about (``... - at `$.key` ``)."""
    found = re.search(r"`\$\.(\w+)", error)
    return found[1] if found else ""


def _names(sections: Sections) -> Iterator[str]:
    return (f"{kind}.{one}" for kind, section in sections.items() for one in section)
