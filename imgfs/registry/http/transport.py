"""One HTTP request and its answer over httpx, with the errors, limits and counters of imgfs.

This module follows no redirects, keeps no cookies, inflates nothing and reads no netrc. It uses HTTP/1.1 only, which
is several times faster on trio than HTTP/2. Importing it is slow (httpx), so the exchange imports it on first use.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import trio

from imgfs.aio.patience import Patience
from imgfs.errors import TooLarge
from imgfs.registry.http.answer import Answer
from imgfs.registry.http.connections import Connections, Pool
from imgfs.registry.http.failures import NO_ANSWER, unanswered
from imgfs.registry.http.network import WideStream
from imgfs.registry.http.proxy import proxies_of_environment, proxy_of
from imgfs.registry.http.request import Outgoing, Request
from imgfs.registry.http.trust import Contexts
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics

for _name in ("httpx", "httpcore"):
    # Both log whole URLs and headers, which contain signed queries and tokens.
    logging.getLogger(_name).setLevel(logging.WARNING)


class Transport:
    """Sends the requests of one Registry. May be created in a thread; is used in one trio loop.

    `context` replaces the system's certificates for hosts without configured certificates.
    """

    def __init__(self, limits: Limits, context: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._contexts = Contexts(context)
        self._connections = Connections(limits, self._contexts)
        self._proxies = proxies_of_environment()

    def warm(self) -> None:
        """Read the system's certificates, which is slow. May run in a thread."""
        self._contexts.get()

    async def send(self, request: Request, counters: HostStatistics, patience: Patience | None = None) -> Answer:
        """Send a request and wait for the headers of its answer, but no longer than `patience` has left.

        A request with a body may take longer, as long as the registry accepts bytes of it. An answer may come before
        all of `request.outgoing` is sent. Raises Unreachable, TimedOut and Garbled, after which a retry may succeed;
        RegistryFailed (TLS, an address that is not permitted), after which it does not; and TooLarge.
        """
        asked, patience = trio.current_time(), patience or Patience()
        route = replace(request.route, proxy=request.route.proxy or proxy_of(request.url, self._proxies))
        try:
            pool = await self._connections.pool(request.url, route, request.subject)
            response = await self._exchanged(request, pool, counters, self._limits.call - patience.idle)
        except NO_ANSWER as error:
            raise unanswered(error, request.subject, request.authority, route.proxy) from None
        if isinstance(stream := response.extensions.get("network_stream"), WideStream):
            stream.widen()
        counters.first_byte.observe(trio.current_time() - asked)
        answer = Answer(response, request, self._limits, counters, asked, patience)
        await self._check_headers(answer, response)
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connections.aclose()

    async def _exchanged(self, request: Request, pool: Pool, counters: HostStatistics, left: float) -> httpx.Response:
        limits, outgoing = self._limits, request.outgoing
        connect = request.route.connect or limits.connect
        silence = limits.silence if outgoing is None else limits.taking
        times = {"connect": connect, "read": silence, "write": limits.silence, "pool": None}
        sent = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            content=request.body or None,
            extensions={"timeout": times},
        )
        whole = connect + limits.silence
        with counters.sending(), trio.fail_after(whole if outgoing is not None else min(whole, left)) as scope:
            if outgoing is not None:
                sent.stream = _Body(outgoing, scope, limits.taking, counters)
            return await pool.handle_async_request(sent)

    async def _check_headers(self, answer: Answer, response: httpx.Response) -> None:
        size, limit = sum(len(name) + len(value) + 4 for name, value in response.headers.raw), self._limits.headers
        if size > limit:
            await answer.aclose()
            raise TooLarge(
                f"{answer.request.subject}: {answer.authority} sent {size} bytes of headers, the limit is {limit}; "
                "report it to the registry's operator"
            )


class _Body(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """An Outgoing as a body for httpx. It is no generator, because httpcore does not close it on cancellation.

    While the body is sent, only each write has a timeout. After its end the answer must come within `taking` seconds,
    which this enforces with `scope`.
    """

    def __init__(self, outgoing: Outgoing, scope: trio.CancelScope, taking: float, counters: HostStatistics) -> None:
        self._pieces = outgoing.pieces()
        self._scope = scope
        self._taking = taking
        self._counters = counters

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._scope.deadline = math.inf
        piece = await anext(self._pieces, b"")
        if not piece:
            self._scope.deadline = trio.current_time() + self._taking
            raise StopAsyncIteration
        self._counters.sent += len(piece)
        return piece
