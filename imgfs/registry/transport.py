"""One HTTP request and its answer over httpx, with errors, limits and counters of imgfs; no policy beyond that.

Importing this module is slow (httpx); the exchange does it on first use. No cookies, no redirects, no inflating, no
netrc. HTTP/1.1 only: on trio it is several times faster than HTTP/2.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httpcore
import httpx
import trio

from imgfs.errors import Garbled, RegistryFailed, TimedOut, TooLarge, Unreachable
from imgfs.registry.addresses import Reach
from imgfs.registry.direct import DirectBody, direct_body
from imgfs.registry.hosts import hostname
from imgfs.registry.limits import Limits
from imgfs.registry.manner import Manner
from imgfs.registry.network import InnerAddress, Network, WideStream
from imgfs.registry.outgoing import Outgoing
from imgfs.registry.proxy import inner_failure, proxies_of_environment, proxy_of, refuse_literal
from imgfs.registry.statistics import HostStatistics, Origin
from imgfs.registry.trust import SYSTEM, Trust, system_context

_log = logging.getLogger("imgfs.registry")

for _name in ("httpx", "httpcore"):
    # Both log whole URLs and headers; signed queries and tokens are in those.
    logging.getLogger(_name).setLevel(logging.WARNING)


TURN = 0.01
"""Seconds after which others get their turn: one read from the network may hold many thousand chunks of a byte."""
_SLOW: dict[type[Exception], str] = {
    httpx.ConnectTimeout: "could not be connected",
    httpx.WriteTimeout: "did not take what was sent",
}


class DirectTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over a pool whose connections are made by our Network, which httpx has no argument for."""

    def __init__(self, context: ssl.SSLContext | None, limits: Limits, permitted: Reach | None) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=limits.connections,
            keepalive_expiry=limits.keep_alive,
            network_backend=Network(permitted),
        )


class ProxiedTransport(httpx.AsyncHTTPTransport):
    """The same through `proxy`, which may be anywhere: who configured it said so."""

    def __init__(self, context: ssl.SSLContext, limits: Limits, proxy: httpx.Proxy) -> None:
        url = proxy.url
        self._pool = httpcore.AsyncHTTPProxy(
            proxy_url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            proxy_auth=proxy.raw_auth,
            proxy_ssl_context=proxy.ssl_context,
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=limits.connections,
            keepalive_expiry=limits.keep_alive,
            network_backend=Network(None),
        )


class Answer:
    """A status, headers, and a body that is read piece by piece. Must be closed; closing does not drain."""

    def __init__(
        self,
        response: httpx.Response,
        subject: str,
        authority: str,
        limits: Limits,
        counters: HostStatistics,
        asked: float,
    ) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.authority = authority
        self.url = ""
        """What was asked in the end, behind redirects."""
        self.foreign = False
        """Whether it comes from where a registry redirected to, not from the registry."""
        self.confidential = False
        """Whether it answers a request that showed a login, which it may echo."""
        self.origin: Origin = "registry"
        self.slow = False
        """Whether the body was given up for its pace, so that its bytes are no progress."""
        self._response = response
        self._subject = subject
        # Not aiter_raw: at the end it gives the connection away, before anybody has looked what is left on it.
        self._raw = aiter(cast(AsyncIterable[bytes], response.stream))
        self._direct: DirectBody | None = None
        self._limits = limits
        self._counters = counters
        self._asked = asked
        self._is_closed = False
        self._waited = 0.0
        self._turn = trio.current_time()
        self._received = 0
        self._reading = False

    def header_values(self, name: str) -> list[str]:
        """Every value of a header that may be repeated."""
        return self._response.headers.get_list(name)

    @property
    def length(self) -> int | None:
        """Content-Length, if there is a usable one."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    async def read(self) -> bytes:
        """The next raw bytes, `b""` at the end; raises Unreachable when the connection breaks, TimedOut on a stall."""
        before = trio.current_time()
        try:
            piece = await anext(self._direct or self._raw, b"")
        except httpx.TimeoutException:
            raise TimedOut(
                f"{self._subject}: {self.authority} sent nothing for {self._limits.silence:g} s; "
                "check the network, then read again"
            ) from None
        except httpx.HTTPError as error:
            raise Unreachable(
                f"{self._subject}: the connection to {self.authority} broke ({reason(error)}); read again"
            ) from None
        if piece and not self._reading:
            self._direct = direct_body(self._response, len(piece), self._limits.silence)
        self._reading = bool(piece)
        await self._take_turns()
        self._counters.received += len(piece)
        self._counters.sources[self.origin] += len(piece)
        self._judge_pace(len(piece), trio.current_time() - before)
        return piece

    async def _take_turns(self) -> None:
        if trio.current_time() - self._turn > TURN:
            await trio.lowlevel.checkpoint()
            self._turn = trio.current_time()

    def _judge_pace(self, received: int, waited: float) -> None:
        self._received += received
        self._waited += waited
        if self._waited < self._limits.slow_window:
            return
        if self._received < self._limits.slow_rate * self._waited and received:
            self.slow = True
            raise TimedOut(
                f"{self._subject}: {self.authority} sent {self._received} bytes in {self._waited:.0f} s, "
                f"below {self._limits.slow_rate} bytes/s; check the network, then read again"
            )
        self._received, self._waited = 0, 0.0

    async def aclose(self) -> None:
        """Give the connection back, or close it when bytes of the body are still to come."""
        if not self._is_closed:
            self._is_closed = True
            self._counters.inflight -= 1
            self._counters.whole.observe(trio.current_time() - self._asked)
        if self._direct is not None:
            self._direct.close()
        elif is_overfull(self._response):
            hang_up(self._response)
        with trio.CancelScope(shield=True):
            await self._response.aclose()
            # The generators below were left in the middle. On the closed connection the next read ends all of them,
            # where closing the outermost would leave the inner ones to the garbage collector and its warnings.
            with suppress(httpx.HTTPError):
                while (self._reading or self._direct) and await anext(self._raw, None) is not None:
                    await self._take_turns()


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


class Wire:
    """The connections of one Registry. Safe to construct in a thread; used in one trio loop.

    `context` replaces the system's certificates where no others are configured.
    """

    def __init__(self, limits: Limits, context: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._contexts: dict[Trust, ssl.SSLContext] = {} if context is None else {SYSTEM: context}
        self._context_lock = threading.Lock()
        self._proxies = proxies_of_environment()
        self._transports: dict[_Key, httpx.AsyncHTTPTransport] = {}

    def context(self, trust: Trust = SYSTEM) -> ssl.SSLContext:
        """The TLS context for `trust`; slow the first time. Raises RegistryFailed for certificates of no use."""
        with self._context_lock:
            if trust not in self._contexts:
                self._contexts[trust] = system_context() if trust == SYSTEM else trust.context()
            return self._contexts[trust]

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        manner: Manner,
        counters: HostStatistics,
        subject: str,
        body: bytes = b"",
        outgoing: Outgoing | None = None,
    ) -> Answer:
        """Send a request, with `body` or `outgoing`, and wait for the headers of its answer; `subject` begins messages.

        An answer that comes before all of `outgoing` was taken is as good as any.

        Raises Unreachable, TimedOut and Garbled, which another try may cure, RegistryFailed (TLS, an address outside
        what is permitted), which it will not, and TooLarge.
        """
        authority, asked = urlsplit(url).netloc, trio.current_time()
        limits, connect = self._limits, manner.connect or self._limits.connect
        silence = limits.silence if outgoing is None else limits.taking
        times = {"connect": connect, "read": silence, "write": limits.silence, "pool": None}
        try:
            transport = await self._transport(url, manner, subject)
            request = httpx.Request(method, url, headers=headers, content=body or None, extensions={"timeout": times})
            with counters.sending(), trio.fail_after(connect + limits.silence) as scope:
                if outgoing is not None:
                    request.stream = _Body(outgoing, scope, limits.taking, counters)
                response = await transport.handle_async_request(request)
        except (trio.TooSlowError, httpx.TimeoutException) as error:
            what = _SLOW.get(type(error), "did not answer")
            raise TimedOut(
                f"{subject}: {authority} {what} in time; check the network and the registry, then try again"
            ) from None
        except httpx.InvalidURL:
            raise RegistryFailed(
                f"{subject}: the address of {authority} is malformed; check the registry's redirects"
            ) from None
        except httpx.HTTPError as error:
            raise translated(error, subject, authority, self._proxy(url, manner)) from None
        if isinstance(stream := response.extensions.get("network_stream"), WideStream):
            stream.widen()
        counters.first_byte.observe(trio.current_time() - asked)
        answer = Answer(response, subject, authority, limits, counters, asked)
        await self._check_headers(answer, response, subject)
        return answer

    async def _check_headers(self, answer: Answer, response: httpx.Response, subject: str) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in response.headers.raw)
        if size > self._limits.headers:
            await answer.aclose()
            raise TooLarge(
                f"{subject}: {answer.authority} sent {size} bytes of headers, the limit is {self._limits.headers}; "
                "report it to the registry's operator"
            )

    def _proxy(self, url: str, manner: Manner) -> str | None:
        return manner.proxy or proxy_of(url, self._proxies)

    async def _transport(self, url: str, manner: Manner, subject: str) -> httpx.AsyncHTTPTransport:
        tls = url.startswith("https:")
        proxy = self._proxy(url, manner)
        if proxy is not None and not proxy.startswith(("http://", "https://")):
            raise RegistryFailed(f"{subject}: the proxy is neither http nor https; check HTTPS_PROXY and ALL_PROXY")
        if proxy is not None and manner.permitted is not None:
            refuse_literal(hostname(url), manner.permitted, subject)
        key = _Key(manner.trust if tls or proxy else None, proxy, None if proxy else manner.permitted)
        if key not in self._transports:
            context = await self._context_for(key, subject)
            if key not in self._transports:
                await self._retire(key)
                self._transports[key] = self._connected(context, manner.permitted, proxy)
        return self._transports[key]

    async def _context_for(self, key: _Key, subject: str) -> ssl.SSLContext | None:
        if key.trust is None:
            return None
        try:
            if key.proxy is not None and key.proxy.startswith("https:"):
                await trio.to_thread.run_sync(self.context)
            return await trio.to_thread.run_sync(self.context, key.trust)
        except RegistryFailed as error:
            raise RegistryFailed(f"{subject}: {error.message}") from None

    async def _retire(self, key: _Key) -> None:
        """Forget connections that were made with files which have changed since, unless somebody reads from them."""
        old = [one for one in self._transports if one.stands_for(key) and is_idle(self._transports[one])]
        for one in old:
            transport = self._transports.pop(one)
            with self._context_lock:
                self._contexts.pop(one.trust or SYSTEM, None)
            await transport.aclose()

    def _connected(
        self, context: ssl.SSLContext | None, permitted: Reach | None, proxy: str | None
    ) -> httpx.AsyncHTTPTransport:
        if proxy is None or context is None:
            return DirectTransport(context, self._limits, permitted)
        # Whom the proxy is, the system's certificates say; httpx would ask others.
        way = httpx.Proxy(proxy, ssl_context=self.context() if proxy.startswith("https:") else None)
        return ProxiedTransport(context, self._limits, way)

    async def aclose(self) -> None:
        """Close every connection."""
        with trio.CancelScope(shield=True):
            for transport in self._transports.values():
                await transport.aclose()


@dataclass(frozen=True, slots=True)
class _Key:
    """What connections may be shared by."""

    trust: Trust | None
    proxy: str | None = field(repr=False)
    permitted: Reach | None

    def stands_for(self, newer: _Key) -> bool:
        """Whether `newer` is the same but for files that changed."""
        if self.trust is None or newer.trust is None or self.trust == SYSTEM or self.trust == newer.trust:
            return False
        same_way = (self.proxy, self.permitted) == (newer.proxy, newer.permitted)
        return same_way and self.trust.paths == newer.trust.paths


def is_idle(transport: httpx.AsyncHTTPTransport) -> bool:
    """Whether no request is on the way over its connections."""
    pool = transport._pool  # pyright: ignore[reportPrivateUsage] - httpx has no other word for it
    return all(one.is_idle() or one.is_closed() for one in pool.connections)


def is_overfull(response: httpx.Response) -> bool:
    """Whether more came over its connection than `response` has said: the next answer there would begin with that.

    Only h11 knows; where it cannot be asked, it may be so.
    """
    holder: Any = response.stream
    for name in ("_httpcore_stream", "_stream", "_connection", "_h11_state"):
        holder = getattr(holder, name, None)
    return holder is None or bool(holder.trailing_data[0])


def hang_up(response: httpx.Response) -> None:
    """End the connection of `response`, so that nobody uses it again."""
    with suppress(OSError):
        response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def translated(
    error: httpx.HTTPError, subject: str, authority: str, proxy: str | None
) -> Unreachable | RegistryFailed | TooLarge:
    """What `error`, met before the headers of an answer, means for a reader; `proxy` is the one on the way."""
    causes = list(_causes(error))
    hints = [hint for cause in causes if (hint := getattr(cause, "error_status_hint", 0))]
    if 431 in hints:
        return TooLarge(
            f"{subject}: {authority} sent more headers than the limit; report it to the registry's operator"
        )
    if hints and isinstance(error, httpx.RemoteProtocolError):
        return Garbled(f"{subject}: what {authority} answered is not HTTP; check the port, and whether it wants TLS")
    inner = next((cause for cause in causes if isinstance(cause, InnerAddress)), None)
    if inner is not None:
        return inner_failure(str(inner), subject, authority)
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls is not None:
        detail = getattr(tls, "verify_message", "") or tls.reason or "handshake failed"
        return RegistryFailed(
            f"{subject}: TLS with {authority} failed ({detail}); check its certificate and SSL_CERT_FILE, "
            "or name the registry as a plain HTTP one"
        )
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError):
        return RegistryFailed(
            f"{subject}: the proxy for {authority} refused; check HTTPS_PROXY, NO_PROXY and hosts.toml"
        )
    if proxy and isinstance(error, httpx.ConnectError):
        return Unreachable(
            f"{subject}: the proxy {urlsplit(proxy).netloc.rpartition('@')[2]} for {authority} cannot be reached "
            f"({reason(error)}); check HTTPS_PROXY, NO_PROXY and hosts.toml"
        )
    return Unreachable(
        f"{subject}: {authority} cannot be reached ({reason(error)}); check the name, the network and the registry"
    )


def reason(error: httpx.HTTPError) -> str:
    """The operating system's words for `error` where there are some, else httpx's kind of error."""
    if isinstance(error, httpx.RemoteProtocolError):
        return "closed early, or not HTTP"
    words = [words for cause in _causes(error) if isinstance(cause, OSError) and (words := _words(cause))]
    return words[-1] if words else type(error).__name__


def _words(error: OSError) -> str | None:
    if isinstance(error, ssl.SSLError | socket.gaierror) or not error.errno:
        return error.strerror
    return os.strerror(error.errno)


def _causes(error: BaseException) -> list[BaseException]:
    """`error` and what led to it, nearest first; of a group of attempts, the first."""
    chain: list[BaseException] = [error]
    while (cause := _cause(chain[-1])) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _cause(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return cast(BaseExceptionGroup[BaseException], error).exceptions[0]
    return error.__cause__ or error.__context__
