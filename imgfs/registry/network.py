"""TCP for httpx: large reads, and connections that stay out of networks a registry has no business naming."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

from imgfs.registry.addresses import Reach, addresses, inner_network

READ_SIZE = 256 << 10
"""httpcore asks for 64 KiB at a time, at up to a third of the throughput."""

SocketOptions = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]]


class InnerAddress(httpcore.ConnectError):
    """The address is in the inner network of this name, which the registry that named it is not in."""


class WideStream(httpcore.AsyncNetworkStream):
    """A stream that reads up to READ_SIZE, whatever it is asked for."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._stream.read(max(max_bytes, READ_SIZE), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return WideStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Network(httpcore.AsyncNetworkBackend):
    """Connects to anything when `permitted` is None, else to public addresses and the inner networks it holds.

    The address that was judged is the one connected to, so a name cannot change its mind in between.
    """

    def __init__(self, permitted: Reach | None) -> None:
        self._permitted = permitted
        self._trio = cast(httpcore.AsyncNetworkBackend, httpcore.TrioBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: SocketOptions | None = None,
    ) -> httpcore.AsyncNetworkStream:
        target = host if self._permitted is None else await judged(host, port, self._permitted)
        return WideStream(await self._trio.connect_tcp(target, port, timeout, local_address, socket_options))


async def judged(host: str, port: int, permitted: Reach) -> str:
    """The first address of `host`, if all of them are public or in `permitted`; raises ConnectError, InnerAddress."""
    try:
        found = await addresses(host, port)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    for network in map(inner_network, found):
        if network and network not in permitted:
            raise InnerAddress(network)
    return found[0]
