"""Objects of plugins for a program beside the daemon, such as `imgfs import`: no state, no options, no tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from imgfs.errors import Unsupported
from imgfs.plugins.contract import Kind
from imgfs.plugins.finding import find_plugins, reason_of

if TYPE_CHECKING:
    import trio

T = TypeVar("T")
Options = TypeVar("Options", bound=msgspec.Struct)
_log = logging.getLogger("imgfs.plugins")


def objects_of(kind: Kind[T]) -> Iterator[T]:
    """The objects of all installed plugins of a kind that can be made alone. Raises Invalid for duplicates."""
    for found in find_plugins(kind=kind):
        if found.plugin is None or found.plugin.requires:
            continue
        try:
            made = found.plugin.make(_Alone())
        except Exception as error:  # noqa: BLE001 - foreign code; the program works without it
            _log.warning("a plugin is skipped", extra={"plugin": found.name, "reason": reason_of(error)})
            continue
        if isinstance(made, kind.type):
            yield made


class _Alone:
    """See Context: one that has nothing but the defaults of options."""

    @property
    def state(self) -> Path:
        """See Context."""
        raise Unsupported("there is no state directory beside the daemon")

    @property
    def nursery(self) -> trio.Nursery:
        """See Context."""
        raise Unsupported("there are no tasks beside the daemon")

    def one(self, kind: Kind[T]) -> T:
        """See Context."""
        raise Unsupported(f"there is no {kind.name} beside the daemon")

    def all(self, kind: Kind[T]) -> list[T]:
        """See Context."""
        return [self.one(kind)]

    def options(self, of: type[Options]) -> Options:
        """See Context."""
        return of()
