"""Open connections, and which requests may share them: one pool for each trust, proxy and set of permitted networks."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpcore
import httpx
import trio

from imgfs.errors import RegistryFailed
from imgfs.registry.hosts.endpoint import hostname
from imgfs.registry.http.network import Network
from imgfs.registry.http.proxy import refuse_literal
from imgfs.registry.http.request import Route
from imgfs.registry.http.resolver import Reach
from imgfs.registry.http.trust import SYSTEM, Contexts, Trust
from imgfs.registry.limits import Limits


class Connections:
    """The pools of one Registry, each created when it is first needed. `contexts` creates the TLS contexts."""

    def __init__(self, limits: Limits, contexts: Contexts) -> None:
        self._limits = limits
        self._contexts = contexts
        self._pools: dict[_Key, Pool] = {}

    async def pool(self, url: str, route: Route, subject: str) -> Pool:
        """Return the pool for a request to `url`, without connecting.

        Raises RegistryFailed for unusable certificates, for a proxy that is neither http nor https, and for an address
        that is not permitted and to which a proxy would connect.
        """
        if route.proxy and not route.proxy.startswith(("http://", "https://")):
            raise RegistryFailed(f"{subject}: the proxy is neither http nor https; check HTTPS_PROXY and ALL_PROXY")
        if route.proxy and route.permitted is not None:
            refuse_literal(hostname(url), route.permitted, subject)
        key = _Key.of(url, route)
        if found := self._pools.get(key):
            return found
        context, proxy_context = await self._contexts_of(key, subject)
        if found := self._pools.get(key):
            return found
        # Store the pool before the next await. Otherwise another task could create a second pool that is never closed.
        made = self._pools[key] = self._made(key, context, proxy_context)
        await self._retire(key)
        return made

    async def aclose(self) -> None:
        """Close every connection."""
        with trio.CancelScope(shield=True):
            for pool in self._pools.values():
                await pool.aclose()

    async def _contexts_of(self, key: _Key, subject: str) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        """Return the TLS contexts for the host and for an https proxy. The proxy uses the system's certificates."""
        get, proxy_context = self._contexts.get, None
        if key.trust is None:
            return None, None
        try:
            if key.proxy.startswith("https:"):
                proxy_context = await trio.to_thread.run_sync(get)
            return await trio.to_thread.run_sync(get, key.trust), proxy_context
        except RegistryFailed as error:
            raise RegistryFailed(f"{subject}: {error.message}") from None

    async def _retire(self, newer: _Key) -> None:
        """Close idle pools whose certificate files have changed since they were created."""
        for key, pool in list(self._pools.items()):
            if key.trust is not None and key.differs_by_files(newer) and pool.is_idle():
                del self._pools[key]
                self._contexts.drop(key.trust)
                await pool.aclose()

    def _made(self, key: _Key, context: ssl.SSLContext | None, proxy_context: ssl.SSLContext | None) -> Pool:
        if key.proxy:
            return Pool.behind(httpx.Proxy(key.proxy, ssl_context=proxy_context), context, self._limits)
        return Pool.direct(key.permitted, context, self._limits)


@dataclass(frozen=True, slots=True)
class _Key:
    """The properties that requests on one connection must share."""

    trust: Trust | None
    """None without TLS and without a proxy."""
    proxy: str = field(repr=False)
    permitted: Reach | None

    @classmethod
    def of(cls, url: str, route: Route) -> _Key:
        trust = route.trust if route.proxy or url.startswith("https:") else None
        # A proxy makes the connection, so permitted networks do not separate pools.
        return cls(trust, route.proxy, None if route.proxy else route.permitted)

    def differs_by_files(self, newer: _Key) -> bool:
        """Whether `newer` differs only by the content of the certificate files."""
        if self.trust is None or newer.trust is None or self.trust == SYSTEM or self.trust == newer.trust:
            return False
        same_way = (self.proxy, self.permitted) == (newer.proxy, newer.permitted)
        return same_way and self.trust.paths == newer.trust.paths


class Pool(httpx.AsyncBaseTransport):
    """A transport of httpx over a pool of httpcore, whose connections Network makes.

    httpx.AsyncHTTPTransport has no argument for a network backend, and its pool is private. So this class does the same
    with the public classes of both packages. Raises httpx's errors.
    """

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return the response, whose body is not read yet and which the caller closes."""
        url = request.url
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast(AsyncIterable[bytes], request.stream),
            extensions=request.extensions,
        )
        with _errors_of_httpx():
            response = await self._pool.handle_async_request(asked)
        body = PoolBody(cast(AsyncIterable[bytes], response.stream), response.aclose)
        extensions = cast(dict[str, Any], response.extensions)  # pyright: ignore[reportUnknownMemberType]
        return httpx.Response(response.status, headers=response.headers, stream=body, extensions=extensions)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    @classmethod
    def direct(cls, permitted: Reach | None, context: ssl.SSLContext | None, limits: Limits) -> Pool:
        """Return a pool that connects directly to hosts in `permitted` networks."""
        return cls(
            httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,
                max_keepalive_connections=limits.connections,
                keepalive_expiry=limits.keep_alive,
                network_backend=Network(permitted),
            )
        )

    @classmethod
    def behind(cls, proxy: httpx.Proxy, context: ssl.SSLContext | None, limits: Limits) -> Pool:
        """Return a pool that connects through `proxy`. A configured proxy may be in any network."""
        url = proxy.url
        return cls(
            httpcore.AsyncHTTPProxy(
                proxy_url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                proxy_auth=proxy.raw_auth,
                proxy_ssl_context=proxy.ssl_context,
                ssl_context=context,
                max_connections=None,
                max_keepalive_connections=limits.connections,
                keepalive_expiry=limits.keep_alive,
                network_backend=Network(None),
            )
        )

    def is_idle(self) -> bool:
        """Whether no request uses its connections."""
        return all(one.is_idle() or one.is_closed() for one in self._pool.connections)


class PoolBody(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """The body of a response: what httpcore gives out as `stream`, with httpx's errors. To be read once."""

    def __init__(self, stream: AsyncIterable[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self.stream = stream
        self._pieces = aiter(stream)
        self._close = close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with _errors_of_httpx():
            return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._close()


@contextmanager
def _errors_of_httpx() -> Generator[None]:
    """Raise each error of httpcore as the error of httpx that has the same name."""
    try:
        yield
    except Exception as error:
        for kind in type(error).__mro__:
            same = getattr(httpx, kind.__name__, None)
            if kind.__module__.startswith("httpcore") and isinstance(same, type) and issubclass(same, httpx.HTTPError):
                raise same(str(error)) from error
        raise
