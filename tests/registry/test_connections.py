"""Which requests share connections, and that connections with outdated certificates are closed."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from imgfs.registry.http.connections import Connections, Pool
from imgfs.registry.http.request import Route
from imgfs.registry.http.trust import CertFile, Contexts, Trust
from imgfs.registry.limits import Limits
from imgfs.testing.registry import FakeRegistry

URL = "https://registry.example/v2/"
PLAIN = "http://registry.example/v2/"


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """The authority that certifies the registry, also stored as `ca.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authority


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[FakeRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FakeRegistry(tls=context) as fake:
        yield fake


@pytest.fixture
def contexts() -> Contexts:
    return Contexts()


@pytest.fixture
async def connections(contexts: Contexts) -> AsyncIterator[Connections]:
    connections = Connections(Limits(), contexts)
    yield connections
    await connections.aclose()


def route(path: Path) -> Route:
    """Return a route with the current content of the certificate file."""
    return Route(trust=Trust(ca=(CertFile.of(path),)))


def renew(path: Path) -> None:
    """Replace the file by another one with the same certificate."""
    text = path.read_text()
    path.unlink()
    path.write_text(f"{text}\n")


async def respond(pool: Pool, url: str) -> httpx.Response:
    return await pool.handle_async_request(httpx.Request("GET", url))


async def finish(response: httpx.Response) -> None:
    await response.aread()
    await response.aclose()


@pytest.mark.parametrize(
    ("url", "one", "other", "shared"),
    [
        (URL, Route(), Route(), True),
        (URL, Route(), Route(connect=3), True),
        (URL, Route(), Route(permitted=frozenset()), False),
        (URL, Route(), Route(trust=Trust(verify=False)), False),
        (PLAIN, Route(), Route(trust=Trust(verify=False)), True),
        (URL, Route(), Route(proxy="http://proxy.example"), False),
        (URL, Route(proxy="http://a.example"), Route(proxy="http://b.example"), False),
        (URL, Route(proxy="http://a.example"), Route(proxy="http://a.example", permitted=frozenset()), True),
    ],
)
async def test_requests_with_equal_routes_share_connections(
    connections: Connections, url: str, one: Route, other: Route, shared: bool
) -> None:
    assert (await connections.pool(url, one, "x") is await connections.pool(url, other, "x")) is shared


async def test_concurrent_callers_that_find_a_changed_certificate_share_connections(
    connections: Connections, contexts: Contexts, secure: FakeRegistry, tmp_path: Path
) -> None:
    path, url = tmp_path / "ca.pem", f"{secure.url}/v2/"
    await finish(await respond(await connections.pool(url, route(path), "x"), url))
    renew(path)
    contexts.get(route(path).trust)
    found = list[Pool]()

    async def ask() -> None:
        found.append(await connections.pool(url, route(path), "x"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert len(set(found)) == 1


async def test_connections_with_an_old_certificate_are_closed_unless_a_body_is_read(
    connections: Connections, secure: FakeRegistry, tmp_path: Path
) -> None:
    path, url = tmp_path / "ca.pem", f"{secure.url}/v2/"
    first = await connections.pool(url, route(path), "x")
    reading = await respond(first, url)
    renew(path)
    second = await connections.pool(url, route(path), "x")
    assert second is not first
    await finish(reading)
    await finish(await respond(first, url))
    renew(path)
    await connections.pool(url, route(path), "x")
    assert secure.log[0].peer == secure.log[1].peer
    await finish(await respond(first, url))
    assert secure.log[2].peer != secure.log[0].peer
    await first.aclose()
