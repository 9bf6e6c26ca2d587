"""Which part of the network an address is in: a registry must not send us where only this machine can go."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import trio

Reach = frozenset[str]
"""Of `loopback`, `link-local`, `private`: the inner networks that somebody's addresses are in."""

_NAT64 = 0x64FF9B << 96


def inner_network(address: str) -> str:
    """`loopback`, `link-local` or `private` for a literal address, and "" for a public one."""
    ip = _embedded(ip_address(address.partition("%")[0]))
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    return "" if ip.is_global and not ip.is_multicast else "private"


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside a mapped, translated or 6to4 one, which is where the packets would go."""
    if isinstance(ip, IPv4Address):
        return ip
    if int(ip) >> 32 == _NAT64 >> 32:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


async def addresses(name: str, port: int) -> list[str]:
    """The addresses of `name`, as the resolver orders them; raises OSError."""
    found = await trio.socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


async def reach(name: str, port: int) -> Reach:
    """The inner networks that `name` has an address in; raises OSError when it cannot be resolved."""
    return frozenset(inner_network(address) for address in await addresses(name, port)) - {""}
