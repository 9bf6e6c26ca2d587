"""The TCP backend for httpcore: large reads, and no connections to inner networks that are not permitted."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

from imgfs.registry.http.resolver import Reach, addresses, inner_network

READ_SIZE = 256 << 10
"""With the 64 KiB that httpcore requests, throughput can be a third of this."""
WRITE_SIZE = 64 << 10
"""Bytes to which the timeout of a write applies. A host that accepts fewer in this time has stalled."""

HEAD_PIECE = 16 << 10
HEAD_MAX = 160 << 10
"""Limit for all bytes before the body, and the size of each read before it. Headers have a lower limit."""

SocketOptions = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]]


class InnerAddress(httpcore.ConnectError):
    """The address is in the named inner network, and the registry that redirected to it is not."""


class HeadTooLarge(httpcore.RemoteProtocolError):
    """More than HEAD_MAX bytes came without an answer: endless headers, or endless interim answers (1xx)."""

    error_status_hint = 431
    """The same hint as that of h11 for headers that are too large."""


class WideStream(httpcore.AsyncNetworkStream):
    """A stream that reads up to READ_SIZE at once, but only after the headers of an answer (`widen`).

    h11 parses what precedes the body without a checkpoint, so this reads it in small pieces and up to HEAD_MAX. The
    timeout of a write applies to each WRITE_SIZE bytes of it.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head = 0
        self._is_wide = False

    def widen(self) -> None:
        """Allow large reads until the next request: the headers have come."""
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
            # The socket accepts any contiguous buffer; a copy would cost time.
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
    """Connects to all addresses if `permitted` is None, else to public addresses and to `permitted` inner networks.

    It connects to the address that it checked, so that a second name lookup cannot return another one.
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
    """Return the first address of `host` if all are public or in `permitted`. Raises ConnectError, InnerAddress."""
    try:
        found = await addresses(host, port)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    for network in map(inner_network, found):
        if network and network not in permitted:
            raise InnerAddress(network)
    return found[0]
