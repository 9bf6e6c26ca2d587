"""Options of plugins: the table `plugins.<kind>.<id>` of imgfs.toml, converted to the plugin's own struct.

The tables lie below `plugins` because a kind may have the same name as an option of the daemon.
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
"""The content of `plugins` in imgfs.toml: options by kind and ID."""


Places = Mapping[str, str]
"""Where each option is set, as in `Settings.origins`: daemon options by name, others as `plugins.<kind>.<id>.<key>`."""
NOWHERE: Places = MappingProxyType({})


def check_names(
    sections: Sections, disabled: Collection[str], known: Collection[str], places: Places = NOWHERE
) -> None:
    """Raise Invalid if a section or `disabled` names a plugin that is not installed. The error suggests a spelling."""
    for name in _names(sections):
        if name not in known:
            place = _place(places, f"plugins.{name}.")
            raise Invalid(f"{place}: [plugins.{name}]: no such plugin is installed; {hint(name, known)}")
    for name in disabled:
        if name not in known:
            place = _place(places, "disabled_plugins")
            raise Invalid(f"{place}: disabled_plugins: {name!r} is not installed; {hint(name, known)}")


def read_options(plugin: Plugin[object], sections: Sections, places: Places = NOWHERE) -> msgspec.Struct | None:
    """Return a plugin's options, or None if it has none. Raises Invalid for an unknown option or a wrong value."""
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
    """Return the values of all options of `plugins`, by plugin name.

    Raises Invalid for an unknown option or wrong value.
    """
    read = {plugin.name: read_options(plugin, sections, places) for plugin in plugins}
    return {name: settings_of(options) for name, options in read.items()}


def settings_of(options: msgspec.Struct | None) -> dict[str, object]:
    """Return the options as a dict by key."""
    return msgspec.structs.asdict(options) if options is not None else {}


def render(facts: Mapping[str, object]) -> str:
    """Return facts as TOML, one per line. A value that TOML cannot express is written as a string."""
    return "".join(f"{dotted([key])} = {written(value)}\n" for key, value in facts.items())


def _place(places: Places, name: str) -> str:
    """Return the place of `name`, or of the first option whose name begins with it."""
    return next((place for option, place in places.items() if option.startswith(name)), "imgfs.toml")


def _key_of(error: str) -> str:
    """Return the option that an error of msgspec names (``... - at `$.key` ``), or ""."""
    found = re.search(r"`\$\.(\w+)", error)
    return found[1] if found else ""


def _names(sections: Sections) -> Iterator[str]:
    return (f"{kind}.{one}" for kind, section in sections.items() for one in section)
