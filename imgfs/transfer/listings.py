"""Lists the tags of a repository and the repositories of a host. Each call asks the registry; nothing is cached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.failures import Failures

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


class Listings:
    """Lists of names, one a line. Concurrent callers of one list share one request."""

    def __init__(self, registry: Registry, failures: Failures, nursery: trio.Nursery) -> None:
        self._registry = registry
        self._failures = failures
        self._flights: Flights[bytes] = Flights(nursery)

    async def tags(self, host: str, repository: str) -> bytes:
        """Return the tags of a repository.

        Raises NotFound if the registry reports 404, RemoteError, Malformed, TooLarge.
        """
        return await self._listed(host, repository, lambda: self._registry.tags(host, repository))

    async def repositories(self, host: str) -> bytes:
        """Return the repositories of a registry. Raises as `tags`; NotFound if the registry has no catalogue."""
        return await self._listed(host, "", lambda: self._registry.repositories(host))

    async def _listed(self, host: str, repository: str, ask: Callable[[], Awaitable[list[str]]]) -> bytes:
        async def lines() -> bytes:
            return "".join(f"{name}\n" for name in await ask()).encode()

        with self._failures.noting(f"images/{host}"):
            return await self._flights.join((host, repository), lines)
