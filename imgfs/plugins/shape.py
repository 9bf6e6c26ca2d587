"""Check at run time that the object behind an entry point is a valid Plugin. No type checker has seen foreign code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import cast

import msgspec

from imgfs.plugins.contract import Kind, Plugin

NAME = re.compile(r"[a-z0-9_-]+\.[a-z0-9_-]+")
"""`<kind>.<id>`: a valid directory name and a valid table name of imgfs.toml."""


def checked(name: str, found: object) -> Plugin[object]:
    """Return the plugin behind the entry point `name`. Raises TypeError and ValueError with advice for its author."""
    if not isinstance(found, Plugin):
        raise TypeError(f"the entry point is {_type(found)}, expected a Plugin of imgfs.plugins.contract")
    plugin = cast("Plugin[object]", found)
    _check_kind(plugin.kind)
    if plugin.name != name:
        raise ValueError(f"the entry point leads to the plugin {plugin.name}; give both the same name")
    if not callable(plugin.make):
        raise TypeError(f"`make` is {_type(plugin.make)}, expected a function of a Context")
    if inspect.iscoroutinefunction(plugin.make):
        raise TypeError("`make` is a coroutine, expected an ordinary function, or an @asynccontextmanager")
    _check_requires(plugin.requires)
    _check_options(plugin.options)
    if not isinstance(cast("object", plugin.exports), Mapping):
        raise TypeError(f"`exports` is {_type(plugin.exports)}, expected a dict")
    return plugin


def _check_kind(kind: object) -> None:
    if not isinstance(kind, Kind):
        raise TypeError(f"`kind` is {_type(kind)}, expected a Kind, such as those of imgfs/<room>/plugin.py")


def _check_requires(requires: object) -> None:
    if not isinstance(requires, tuple):
        raise TypeError(f"`requires` is {_type(requires)}, expected a tuple: (KIND,) or ('<kind>.<id>',)")
    for need in cast("tuple[object, ...]", requires):
        if not isinstance(need, Kind) and not (isinstance(need, str) and NAME.fullmatch(need)):
            raise TypeError(f"`requires` has {need!r}, expected a Kind or '<kind>.<id>'")


def _check_options(options: object) -> None:
    if options is None:
        return
    if not (isinstance(options, type) and issubclass(options, msgspec.Struct)):
        raise TypeError(f"`options` is {options!r}, expected a subclass of msgspec.Struct")
    for field in msgspec.structs.fields(options):
        if field.required:
            raise TypeError(f"`options`: {field.name} has no default; each needs one")


def _type(value: object) -> str:
    return type(value).__name__
