"""What a plugin is: one value that says its kind and id, what it requires, its options, and how its object is made.

The object is an ordinary one: nothing here is a base class of it. A kind is declared by the room that owns the type
(`imgfs/<room>/plugin.py`), so whoever requires one imports no plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:  # the command line names plugins too, and has no event loop
    import trio

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Options = TypeVar("Options", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A sort of plugin: what its objects are instances of."""

    name: str
    type: type[T_co]
    obstacle: Callable[[Any, Path], str] | None = None
    """Why an object of this kind is of no use at the moment, empty where it is: what may change while it runs.

    Gets the object and the state directory whenever somebody reads the plugin's status, in a thread, so it may block
    for as long as a few stats take.
    """


class Context(Protocol):
    """What a plugin is made with."""

    @property
    def state(self) -> Path:
        """The state directory. What a plugin of others keeps there goes into `plugins/<kind>.<id>`."""
        ...

    @property
    def nursery(self) -> trio.Nursery:
        """Where work runs that outlasts a call. It is cancelled and over before any plugin is closed."""
        ...

    def one(self, kind: Kind[T]) -> T:
        """The object of the only running plugin of a required kind. Raises Invalid where several run."""
        ...

    def all(self, kind: Kind[T]) -> list[T]:
        """The objects of all running plugins of a required kind, in the order of their ids."""
        ...

    def options(self, of: type[Options]) -> Options:
        """The plugin's own section of imgfs.toml; `of` is its `options`."""
        ...


Making = Callable[[Context], T_co | AbstractAsyncContextManager[T_co]]


@dataclass(frozen=True, slots=True)
class Plugin(Generic[T_co]):
    """One plugin. `<kind>.<id>` is its name, also that of its entry point and, below `plugins.`, of its options."""

    kind: Kind[T_co]
    id: str
    make: Making[T_co]
    """Gives the object, or an async context manager that gives it on entering and is left when the daemon ends.

    It may hold no nursery open of its own: work belongs into the context's. An exception is the reason why it does
    not run.
    """
    requires: tuple[Kind[object] | str, ...] = ()
    """Kinds, of which all plugins come first and one at least has to run, and names of single plugins, likewise."""
    options: type[msgspec.Struct] | None = None
    """Its options, each with a default. No secrets: `.imgfs/plugins/` shows them."""
    optional: bool = False
    """Whether the tree is shown without it, if it cannot start."""
    exports: Mapping[str, str] = field(default_factory=dict[str, str])
    """What others may want to know of it, for `.imgfs/plugins/<kind>/<id>/exports`."""

    @property
    def name(self) -> str:
        """`<kind>.<id>`."""
        return f"{self.kind.name}.{self.id}"
