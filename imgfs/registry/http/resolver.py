"""Names to addresses, in threads of their own: a name server that does not answer holds up nobody but who asks for it.

getaddrinfo(3) cannot be ended, and waits for half a minute and more. In the threads of everybody a few dead names would
keep mounts and disks waiting.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

import trio

THREADS = 32
"""Lookups at a time, of all names."""
THREADS_A_NAME = 2
"""Of one name: more would only hang beside it."""
_KEPT = 256

Lookup = Callable[..., list[Any]]


class _Place:
    """A place among those of one name and, at the same time, among all: what trio's threads take for a limiter."""

    def __init__(self, own: trio.CapacityLimiter, all: trio.CapacityLimiter) -> None:
        self._own = own
        self._all = all

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._own.acquire_on_behalf_of(borrower)
        try:
            await self._all.acquire_on_behalf_of(borrower)
        except BaseException:
            self._own.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        self._all.release_on_behalf_of(borrower)
        self._own.release_on_behalf_of(borrower)


class Resolver(trio.abc.HostnameResolver):
    """The system's resolver for all of a trio run (`trio.socket.set_custom_hostname_resolver`).

    Cancelling a caller leaves its thread to end by itself; until then it keeps its place, so that names which do not
    answer never take more than THREADS_A_NAME each.
    """

    def __init__(self, lookup: Lookup = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._all = trio.CapacityLimiter(THREADS)
        self._names: dict[object, trio.CapacityLimiter] = {}

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As socket.getaddrinfo; raises OSError."""
        return await self._in_thread(host, self._lookup, host, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """As socket.getnameinfo; raises OSError."""
        return await self._in_thread(sockaddr[0], socket.getnameinfo, sockaddr, flags)

    async def _in_thread(self, name: object, function: Callable[..., Any], *arguments: object) -> Any:
        place = cast(trio.CapacityLimiter, _Place(self._own(name), self._all))
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=place)

    def _own(self, name: object) -> trio.CapacityLimiter:
        if len(self._names) >= _KEPT:
            self._names = {known: own for known, own in self._names.items() if _is_used(own)}
        return self._names.setdefault(name, trio.CapacityLimiter(THREADS_A_NAME))


def _is_used(own: trio.CapacityLimiter) -> bool:
    said = own.statistics()
    return bool(said.borrowed_tokens or said.tasks_waiting)
