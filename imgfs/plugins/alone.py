"""Make plugin objects outside the daemon, for programs such as `imgfs import`.

Such plugins get default options, and neither a state directory nor a nursery.
"""

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
    """Yield the objects of all installed plugins of a kind that require nothing. Raises Invalid for duplicate names."""
    for found in find_plugins(kind=kind):
        if found.plugin is None or found.plugin.requires:
            continue
        try:
            made = found.plugin.make(_Alone())
        except Exception as error:  # noqa: BLE001 - foreign code; the program works without this plugin
            _log.warning("plugin skipped", extra={"plugin": found.name, "reason": reason_of(error)})
            continue
        if isinstance(made, kind.type):
            yield made


class _Alone:
    """A Context outside the daemon: only default options are available."""

    @property
    def state(self) -> Path:
        """See `Context`."""
        raise Unsupported("the state directory is not available outside the daemon")

    @property
    def nursery(self) -> trio.Nursery:
        """See `Context`."""
        raise Unsupported("tasks are not available outside the daemon")

    def one(self, kind: Kind[T]) -> T:
        """See `Context`."""
        raise Unsupported(f"{kind.name} is not available outside the daemon")

    def all(self, kind: Kind[T]) -> list[T]:
        """See `Context`."""
        return [self.one(kind)]

    def options(self, of: type[Options]) -> Options:
        """See `Context`."""
        return of()
