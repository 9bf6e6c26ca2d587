"""TLS through a proxy: the tunnel leads to the registry, whose certificate is verified."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from trio.testing import MockClock

from imgfs.errors import RegistryFailed, Unreachable
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, MANIFEST, Scene
from tests.support.tunnel import tunnel

HOST = "registry.example"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def fake(authority: trustme.CA) -> Iterator[FakeRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with FakeRegistry(tls=context) as fake:
        yield fake


@pytest.fixture
def certs(authority: trustme.CA, tmp_path: Path) -> Path:
    """Store the registry's authority where docker would look for it."""
    (tmp_path / HOST).mkdir()
    authority.cert_pem.write_to_path(tmp_path / HOST / "ca.crt")
    return tmp_path


async def test_the_environments_proxy_tunnels_tls(
    mock_clock: MockClock, fake: FakeRegistry, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tunnel(fake.host) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:canary@{proxy.authority}")
        scene = Scene(mock_clock, fake, host=HOST, hosts_path=[certs])
        async with scene.registry:
            assert (await scene.ask("manifest"), await scene.read()) == (MANIFEST, BLOB)
    assert proxy.asked[0].startswith(f"CONNECT {HOST}:443 ")
    assert "proxy-authorization: basic " in proxy.asked[0].lower()
    assert [one.headers["host"] for one in fake.log] == [HOST, HOST]
    assert "proxy-authorization" not in fake.log[0].headers


async def test_a_hosts_own_proxy_goes_before_the_environments(
    mock_clock: MockClock, fake: FakeRegistry, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tunnel(fake.host) as own, tunnel(fake.host) as other:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{other.authority}")
        monkeypatch.setenv("NO_PROXY", "*")
        (certs / HOST / "hosts.toml").write_text(f'ca = "ca.crt"\nproxy = "http://{own.authority}"\n')
        scene = Scene(mock_clock, fake, host=HOST, hosts_path=[certs])
        async with scene.registry:
            assert await scene.ask("manifest") == MANIFEST
    assert (len(own.asked), other.asked) == (1, [])


async def test_a_proxy_that_is_not_there_is_named(
    mock_clock: MockClock, fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:canary@127.0.0.1:1")
    scene = Scene(mock_clock, fake, host=HOST)
    async with scene.registry:
        with pytest.raises(Unreachable, match=rf"the proxy 127\.0\.0\.1:1 for {HOST}.*HTTPS_PROXY") as caught:
            await scene.ask("manifest")
    assert "canary" not in caught.value.message


async def test_a_proxy_that_refuses_is_named_as_the_cause_and_the_next_host_asked(
    mock_clock: MockClock, fake: FakeRegistry, certs: Path
) -> None:
    with tunnel(fake.host, refusing=True) as proxy, FakeRegistry() as plain:
        setting = f'proxy = "http://user:canary@{proxy.authority}"'
        path = certs / HOST / "hosts.toml"
        path.write_text(f'ca = "ca.crt"\n{setting}\n')
        scene = Scene(mock_clock, fake, host=HOST, hosts_path=[certs])
        Scene(mock_clock, plain)
        async with scene.registry:
            with pytest.raises(RegistryFailed, match="the proxy for") as caught:
                await scene.ask("manifest")
            assert "canary" not in caught.value.message
            path.write_text(f'server = "{plain.url}"\n[host."https://{HOST}"]\n{setting}\n')
            assert await scene.ask("manifest") == MANIFEST
    assert fake.requests() == 0
