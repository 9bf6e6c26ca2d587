"""What registries have: tags of a repository, repositories of a host. Asked anew each time, and not remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from imgfs.aio.flight import Flights
from imgfs.failures import Failures

if TYPE_CHECKING:
    from imgfs.registry.client import Registry


class Listings:
    """Lists of names, a line each. However many ask for one at once, its registry is asked once."""

    def __init__(self, registry: Registry, failures: Failures, nursery: trio.Nursery) -> None:
        self._registry = registry
        self._failures = failures
        self._flights: Flights[bytes] = Flights(nursery)

    async def tags(self, host: str, repository: str) -> bytes:
        """The tags of a repository. Raises NotFound by the registry's word, RemoteError, Malformed, TooLarge."""
        return await self._listed(host, repository, lambda: self._registry.tags(host, repository))

    async def repositories(self, host: str) -> bytes:
        """The repositories of a registry. Raises as `tags`; NotFound where it does not tell."""
        return await self._listed(host, "", lambda: self._registry.repositories(host))

    async def _listed(self, host: str, repository: str, ask: Callable[[], Awaitable[list[str]]]) -> bytes:
        async def lines() -> bytes:
            return "".join(f"{name}\n" for name in await ask()).encode()

        with self._failures.noting(f"images/{host}"):
            return await self._flights.join((host, repository), lines)
