"""One HTTP request and its answer over httpx, with errors, limits and counters of imgfs; no policy beyond that.

Importing this module is slow (httpx); the exchange does it on first use. No cookies, no redirects, no inflating, no
netrc. HTTP/1.1 only: on trio it is several times faster than HTTP/2.
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
from imgfs.registry.http.outgoing import Outgoing
from imgfs.registry.http.proxy import proxies_of_environment, proxy_of
from imgfs.registry.http.request import Request
from imgfs.registry.http.trust import Contexts
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics

for _name in ("httpx", "httpcore"):
    # Both log whole URLs and headers; signed queries and tokens are in those.
    logging.getLogger(_name).setLevel(logging.WARNING)


class Transport:
    """What the requests of one Registry travel by. Safe to construct in a thread; used in one trio loop.

    `context` replaces the system's certificates where no others are configured.
    """

    def __init__(self, limits: Limits, context: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._contexts = Contexts(context)
        self._connections = Connections(limits, self._contexts)
        self._proxies = proxies_of_environment()

    def warm(self) -> None:
        """Read the system's certificates, which is slow; safe in a thread."""
        self._contexts.get()

    async def send(self, request: Request, counters: HostStatistics, patience: Patience | None = None) -> Answer:
        """Send a request, and wait for the headers of its answer, and no longer than `patience` has left.

        A request with a body may take as long as the body is sent at all.

        An answer that comes before all of `request.outgoing` was taken is as good as any.

        Raises Unreachable, TimedOut and Garbled, which another try may cure, RegistryFailed (TLS, an address outside
        what is permitted), which it will not, and TooLarge.
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
    """An Outgoing as httpx takes it; no generator, because httpcore leaves it in the middle when it is cancelled.

    While it goes out each write has its own time; from its end on the answer has `taking` seconds, within `scope`.
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
