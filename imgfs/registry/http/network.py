"""TCP for httpx: large reads, and connections that stay out of networks a registry has no business naming."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

from imgfs.registry.http.addresses import Reach, addresses, inner_network

READ_SIZE = 256 << 10
"""httpcore asks for 64 KiB at a time, at up to a third of the throughput."""
WRITE_SIZE = 64 << 10
"""Bytes that a write may take its timeout for: who takes fewer in it has stalled."""

HEAD_PIECE = 16 << 10
HEAD_MAX = 160 << 10
"""Bytes of all that comes before the body, and a first piece of that. A single set of headers has a lower limit."""

SocketOptions = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]]


class InnerAddress(httpcore.ConnectError):
    """The address is in the inner network of this name, which the registry that named it is not in."""


class HeadTooLarge(httpcore.RemoteProtocolError):
    """More than HEAD_MAX bytes came and no answer among them: headers without end, or interim answers (1xx)."""

    error_status_hint = 431
    """As h11 says of one header too many."""


class WideStream(httpcore.AsyncNetworkStream):
    """A stream that reads up to READ_SIZE, whatever it is asked for; but only once an answer has begun (`widen`).

    What comes before that is parsed without a pause for anybody else, so it is taken in small pieces, and not for ever.
    Each WRITE_SIZE of a write has the time that is given for all of it.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head = 0
        self._is_wide = False

    def widen(self) -> None:
        """The headers are here; until the next request."""
        self._is_wide = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._is_wide:
            return await self._stream.read(max(max_bytes, READ_SIZE), timeout)
        piece = await self._stream.read(HEAD_PIECE, timeout)
        self._head += len(piece)
        if self._head > HEAD_MAX:
            raise HeadTooLarge(f"{self._head} bytes without an answer")
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._head, self._is_wide = 0, False
        view = memoryview(buffer)
        for start in range(0, len(view), WRITE_SIZE):
            # Any contiguous buffer will do for the socket, and copies cost.
            await self._stream.write(view[start : start + WRITE_SIZE], timeout)  # pyright: ignore[reportArgumentType]

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
