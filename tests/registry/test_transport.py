"""How a request is sent: TLS, proxies, the time to connect, and what importing these modules costs."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.errors import RegistryFailed, TimedOut
from imgfs.registry.http.request import Request, Route
from imgfs.registry.http.transport import Transport
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics
from imgfs.testing.registry import FakeRegistry


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[FakeRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FakeRegistry(tls=context) as fake:
        yield fake


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_is_spoken_to_a_trusted_registry(secure: FakeRegistry, authority: trustme.CA) -> None:
    transport = Transport(Limits(), trusting(authority))
    answer = await transport.send(Request("GET", f"{secure.url}/v2/", "x"), HostStatistics())
    assert (answer.status, await answer.read()) == (200, b"{}")
    await answer.aclose()
    await transport.aclose()


async def test_a_stranger_is_refused_and_the_reason_said(secure: FakeRegistry) -> None:
    transport = Transport(Limits())
    with pytest.raises(RegistryFailed, match=r"TLS with .* failed .*certificate"):
        await transport.send(Request("GET", f"{secure.url}/v2/", "x"), HostStatistics())
    assert secure.requests() == 0
    await transport.aclose()


async def test_a_wrong_name_is_refused(secure: FakeRegistry, authority: trustme.CA) -> None:
    transport = Transport(Limits(), trusting(authority))
    url = secure.url.replace("127.0.0.1", "localhost")
    with pytest.raises(RegistryFailed, match="TLS with"):
        await transport.send(Request("GET", f"{url}/v2/", "x"), HostStatistics())
    await transport.aclose()


async def test_a_registry_without_tls_is_never_spoken_to_in_plain(fake: FakeRegistry) -> None:
    transport = Transport(Limits())
    with pytest.raises(RegistryFailed, match="plain HTTP"):
        await transport.send(Request("GET", f"https://{fake.host}/v2/", "x"), HostStatistics())
    assert fake.requests() == 0
    await transport.aclose()


async def test_a_connection_may_have_less_time_than_others(mock_clock: MockClock) -> None:
    transport = Transport(Limits())
    with deaf_port() as port:

        async def ask() -> None:
            request = Request("GET", f"http://127.0.0.1:{port}/", "x", route=Route(connect=0.2))
            with pytest.raises(TimedOut, match="could not be connected"):
                await transport.send(request, HostStatistics())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            mock_clock.jump(0.3)
    await transport.aclose()


@contextmanager
def deaf_port() -> Iterator[int]:
    """Yield a port on which connections are never answered, because its queue is full."""
    with socket.socket() as listener, socket.socket() as waiting, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (first, waiting):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


async def test_a_proxy_is_spoken_to_by_tls_with_the_systems_certificates(
    secure: FakeRegistry, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", secure.url)
    for context, refused in ((None, True), (trusting(authority), False)):
        transport = Transport(Limits(), context)
        with pytest.raises(RegistryFailed, match="TLS with") if refused else nullcontext():
            answer = await transport.send(Request("GET", "http://registry.example/v2/", "x"), HostStatistics())
            await answer.aclose()
        await transport.aclose()
    assert [one.path for one in secure.log] == ["http://registry.example/v2/"]


async def test_a_proxy_is_used(monkeypatch: pytest.MonkeyPatch, fake: FakeRegistry) -> None:
    monkeypatch.setenv("http_proxy", fake.url)
    transport = Transport(Limits())
    answer = await transport.send(Request("GET", "http://registry.example/v2/", "x"), HostStatistics())
    await answer.aclose()
    await transport.aclose()
    assert fake.log[0].path == "http://registry.example/v2/"
    assert fake.log[0].headers["host"] == "registry.example"


async def test_a_proxy_of_another_kind_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:canary@proxy.test")
    transport = Transport(Limits())
    with pytest.raises(RegistryFailed, match="neither http nor https") as caught:
        await transport.send(Request("GET", "https://registry.example/v2/", "x"), HostStatistics())
    assert "canary" not in caught.value.message


def test_importing_the_client_does_not_import_httpx() -> None:
    code = "import sys, imgfs.registry.client; print('httpx' in sys.modules or 'httpcore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
