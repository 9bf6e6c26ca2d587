"""Resolves host names in dedicated threads, and classifies addresses as inner networks or public."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

import trio

Reach = frozenset[str]
"""A subset of `loopback`, `link-local` and `private`: the inner networks of some addresses."""

THREADS = 32
"""Concurrent lookups of all names."""
THREADS_A_NAME = 2
"""Concurrent lookups of one name. If its name server is dead, further lookups would only hang too."""
_KEPT = 256
Lookup = Callable[..., list[Any]]
_NAT64 = 0x64FF9B << 96


def inner_network(address: str) -> str:
    """Return `loopback`, `link-local` or `private` for a literal address, and "" for a public one."""
    ip = _embedded(ip_address(address.partition("%")[0]))
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    return "" if ip.is_global and not ip.is_multicast else "private"


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address inside a mapped, translated or 6to4 address, because packets go there."""
    if isinstance(ip, IPv4Address):
        return ip
    if int(ip) >> 32 == _NAT64 >> 32:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


async def addresses(name: str, port: int) -> list[str]:
    """Return the addresses of `name` in the resolver's order. Raises OSError."""
    found = await trio.socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


async def reach(name: str, port: int) -> Reach:
    """Return the inner networks that addresses of `name` are in. Raises OSError if it cannot be resolved."""
    return frozenset(inner_network(address) for address in await addresses(name, port)) - {""}


class _SlotPair:
    """A limiter for trio's threads that takes a slot of one name and a slot of all names together."""

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


class NameResolver(trio.abc.HostnameResolver):
    """The system's resolver, for a whole trio run (`trio.socket.set_custom_hostname_resolver`).

    A cancelled caller abandons its thread. The thread keeps its slots until the lookup ends, so lookups of names that
    get no answer never use more than THREADS_A_NAME threads each.
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
        """As socket.getaddrinfo. Raises OSError."""
        return await self._in_thread(host, self._lookup, host, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """As socket.getnameinfo. Raises OSError."""
        return await self._in_thread(sockaddr[0], socket.getnameinfo, sockaddr, flags)

    async def _in_thread(self, name: object, function: Callable[..., Any], *arguments: object) -> Any:
        slots = cast(trio.CapacityLimiter, _SlotPair(self._own(name), self._all))
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=slots)

    def _own(self, name: object) -> trio.CapacityLimiter:
        if len(self._names) >= _KEPT:
            self._names = {known: own for known, own in self._names.items() if _is_used(own)}
        return self._names.setdefault(name, trio.CapacityLimiter(THREADS_A_NAME))


def _is_used(own: trio.CapacityLimiter) -> bool:
    said = own.statistics()
    return bool(said.borrowed_tokens or said.tasks_waiting)
