"""The running plugins by kind, and a report about each installed plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import trio

from imgfs.errors import ImgfsError, Invalid
from imgfs.plugins.contract import Kind, Plugin
from imgfs.plugins.finding import FoundPlugin, reason_of
from imgfs.plugins.options import settings_of
from imgfs.plugins.order import named

T = TypeVar("T")


class NotStarted(ImgfsError):
    """A required plugin does not run. Its errno is the errno of the reason."""

    def __init__(self, message: str, errno: int = ImgfsError.errno) -> None:
        super().__init__(message)
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Given:
    """An object that the program provides. Plugins require it like a plugin's object."""

    kind: Kind[object]
    value: object


@dataclass(frozen=True, slots=True)
class PluginReport:
    """The result of starting an installed plugin. `reason` says why it does not run, and is empty if it runs."""

    found: FoundPlugin
    reason: str = ""
    options: msgspec.Struct | None = None
    obstacle: Callable[[], str] = lambda: ""
    """Calls Kind.obstacle with the plugin's object."""

    @property
    def status(self) -> str:
        """`running`, `off: <reason>` (did not start) or `unavailable: <reason>` (unusable at present). May block."""
        if self.reason:
            return f"off: {self.reason}"
        try:
            why = self.obstacle()
        except Exception as error:  # noqa: BLE001 - foreign code; a plugin that cannot be asked is reported as unavailable
            why = reason_of(error)
        return f"unavailable: {why}" if why else "running"

    @property
    def settings(self) -> dict[str, object]:
        """Its options in force."""
        return settings_of(self.options)

    @property
    def exports(self) -> dict[str, object]:
        """Facts for other programs: distribution, types, requirements and exports."""
        facts: dict[str, object] = {"distribution": self.found.distribution}
        if plugin := self.found.plugin:
            facts["type"] = f"{plugin.kind.type.__module__}.{plugin.kind.type.__qualname__}"
            facts["requires"] = [need if isinstance(need, str) else need.name for need in plugin.requires]
            facts |= plugin.exports
        return facts


class RunningPlugins:
    """The objects of running plugins by kind, and a report about each installed plugin."""

    def __init__(self, nursery: trio.Nursery, found: Iterable[FoundPlugin] = (), given: Iterable[Given] = ()) -> None:
        self.nursery = nursery
        self._found = {one.name: one for one in found}
        self._objects = {one.kind.name: {one.kind.name: one.value} for one in given}
        self.reports = {name: PluginReport(one, one.failure or "not yet started") for name, one in self._found.items()}
        """The reports by plugin name."""

    def one(self, kind: Kind[T]) -> T:
        """Return the object of the only plugin of a kind. Raises NotStarted if none runs, Invalid if several run."""
        objects = self.all(kind)
        if not objects:
            raise NotStarted(f"plugins: no plugin of kind {kind.name} runs{self._why(kind)}")
        if len(objects) > 1:
            names = ", ".join(self._objects[kind.name])
            raise Invalid(
                f"plugins: {names} run, and exactly one is needed; name the others in disabled_plugins of imgfs.toml"
            )
        return objects[0]

    def all(self, kind: Kind[T]) -> list[T]:
        """Return the objects of all plugins of a kind, ordered by ID."""
        objects = self._objects.get(kind.name, {})
        return [cast("T", objects[name]) for name in sorted(objects)]

    def add(self, plugin: Plugin[object], value: object) -> None:
        """Record the object of a plugin that has started."""
        self._objects.setdefault(plugin.kind.name, {})[plugin.name] = value

    def note(self, plugin: Plugin[object], reason: str, options: msgspec.Struct | None, state: Path) -> None:
        """Record the result of a start. `reason` is empty if the plugin runs. `state` is the state directory."""
        obstacle = partial(self._obstacle, plugin, state)
        self.reports[plugin.name] = PluginReport(self._found[plugin.name], reason, options, obstacle)

    def unmet(self, plugin: Plugin[object]) -> str:
        """Return why a plugin's requirements are not fulfilled, or "" if they are."""
        for need in plugin.requires:
            name = need if isinstance(need, str) else need.name
            running = self._objects.get(name.partition(".")[0], {})
            if not running or ("." in name and name not in running):
                return f"requires {name}, which does not run{self._why(need)}"
        return ""

    def _obstacle(self, plugin: Plugin[object], state: Path) -> str:
        asked = plugin.kind.obstacle
        return asked(self._objects[plugin.kind.name][plugin.name], state) if asked else ""

    def _why(self, need: Kind[object] | str) -> str:
        reasons = [f"{name}: {self.reports[name].reason}" for name in named(need, self.reports)]
        return f" ({'; '.join(reasons)})" if reasons else "; none is installed: install imgfs or the plugin again"
