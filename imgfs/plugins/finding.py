"""Find installed plugins: the entry points of the group `imgfs.plugins` in all distributions of the environment.

Loading a plugin runs foreign code. An exception there is that plugin's failure and does not stop the daemon.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise

from imgfs.errors import Invalid
from imgfs.plugins.contract import Kind, Plugin
from imgfs.plugins.shape import NAME, checked

GROUP = "imgfs.plugins"
_log = logging.getLogger("imgfs.plugins")


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """An entry point: its name, its distribution, and either the plugin or the reason why it could not be loaded."""

    name: str
    distribution: str
    plugin: Plugin[object] | None
    failure: str = ""


def find_plugins(disabled: Iterable[str] = (), kind: Kind[object] | None = None) -> list[FoundPlugin]:
    """Return all installed plugins, or those of one kind, ordered by name. A plugin in `disabled` is not imported.

    Raises Invalid if two plugins have the same name, or if a name cannot be a directory.
    """
    off = frozenset(disabled)
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    wanted = [point for point in points if kind is None or point.name.startswith(f"{kind.name}.")]
    _refuse_odd_names(wanted)
    _refuse_duplicates([point for point in wanted if point.name not in off])
    return [
        FoundPlugin(point.name, _distribution(point), None, "disabled in imgfs.toml")
        if point.name in off
        else _load(point)
        for point in wanted
    ]


def _refuse_odd_names(points: list[EntryPoint]) -> None:
    for point in points:
        if not NAME.fullmatch(point.name):
            raise Invalid(
                f"plugin {point.name!r} of {_distribution(point)}: expected <kind>.<id> of lower-case letters, digits, "
                "- and _; uninstall the plugin, or ask its author to rename it"
            )


def _refuse_duplicates(points: list[EntryPoint]) -> None:
    for one, other in pairwise(points):
        if one.name == other.name:
            raise Invalid(
                f"plugin {one.name}: {_distribution(one)} and {_distribution(other)} both have a plugin of that name; "
                "uninstall one of them"
            )


def _load(point: EntryPoint) -> FoundPlugin:
    try:
        return FoundPlugin(point.name, _distribution(point), checked(point.name, point.load()))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code, also if it calls sys.exit
        _log.warning("plugin cannot be loaded", exc_info=error, extra={"plugin": point.name})
        return FoundPlugin(point.name, _distribution(point), None, reason_of(error))


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"


def reason_of(error: BaseException) -> str:
    """Return an exception's message on one line, with the name of its class."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
