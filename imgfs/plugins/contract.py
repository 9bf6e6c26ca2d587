"""The contract of a plugin: its kind and ID, its requirements, its options, and how its object is made.

A plugin's object needs no base class. The room that owns an object's type declares the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:  # the command line imports this module too and has no event loop
    import trio

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Options = TypeVar("Options", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A sort of plugin. All objects of a kind are instances of `type`."""

    name: str
    type: type[T_co]
    obstacle: Callable[[Any, Path], str] | None = None
    """Return why an object of this kind cannot be used at present, or "" if it can. The answer may change at run time.

    Called with the object and the state directory in a thread each time a caller reads the plugin's status. It may
    block briefly, for example for a few stat calls.
    """


class Context(Protocol):
    """What a plugin's `make` receives."""

    @property
    def state(self) -> Path:
        """The state directory. A third-party plugin keeps its files in `plugins/<kind>.<id>` there."""
        ...

    @property
    def nursery(self) -> trio.Nursery:
        """The nursery for background work. It is cancelled and has ended before any plugin is closed."""
        ...

    def one(self, kind: Kind[T]) -> T:
        """Return the object of the only running plugin of a required kind. Raises Invalid if several run."""
        ...

    def all(self, kind: Kind[T]) -> list[T]:
        """Return the objects of all running plugins of a required kind, ordered by ID."""
        ...

    def options(self, of: type[Options]) -> Options:
        """Return the plugin's own section of imgfs.toml. `of` is the plugin's `options`."""
        ...


Making = Callable[[Context], T_co | AbstractAsyncContextManager[T_co]]


@dataclass(frozen=True, slots=True)
class Plugin(Generic[T_co]):
    """One plugin. Its name `<kind>.<id>` is also the name of its entry point and, below `plugins.`, of its options."""

    kind: Kind[T_co]
    id: str
    make: Making[T_co]
    """Return the object, or an async context manager that yields it and is exited when the daemon stops.

    The context manager must not hold an open nursery; use the context's nursery. An exception becomes the reason why
    the plugin does not run.
    """
    requires: tuple[Kind[object] | str, ...] = ()
    """Required kinds and names of required plugins. All plugins of a required kind start first; at least one must run.
    """
    options: type[msgspec.Struct] | None = None
    """The struct of its options. Each option has a default. No secrets: `.imgfs/plugins/` shows all values."""
    optional: bool = False
    """Whether the daemon starts without this plugin if it cannot start."""
    exports: Mapping[str, str] = field(default_factory=dict[str, str])
    """Facts for other programs, shown in `.imgfs/plugins/<kind>/<id>/exports`."""

    @property
    def name(self) -> str:
        """`<kind>.<id>`."""
        return f"{self.kind.name}.{self.id}"
