"""Hostile WWW-Authenticate: a registry at a public address names an inner host, another host or a weaker transport.

test_hostile_realms.py runs it in a network namespace of its own, whose loopback has all the addresses below. At each
address a trap listens, which records logins and requests that only this machine can make.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import cast

import pytest
import trio
import trustme

from imgfs.errors import AccessDenied, ImgfsError, RegistryFailed, Unreachable
from imgfs.oci.reference import Reference
from imgfs.registry.client import Registry
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.limits import Limits
from tests.registry.credentials.desk import Desk
from tests.registry.push.pushing import Bytes
from tests.support.isolation import settle
from tests.support.mounted import Mounted
from tests.support.token_server import TokenServer, basic, token_server

PUBLIC, OTHER = "93.184.216.34", "151.101.1.69"
METADATA, PRIVATE, LOOPBACK = "169.254.169.254", "10.1.2.3", "127.0.0.1"
TRAPS = (OTHER, METADATA, PRIVATE, LOOPBACK)
RESOLVED = {"metadata.test": METADATA, "inner.test": PRIVATE}
PASSWORD = "canary-password"


class Challenger(ThreadingHTTPServer):
    """A registry that answers every request with these headers and this status."""

    daemon_threads = True

    def __init__(self, address: str = PUBLIC, tls: ssl.SSLContext | None = None) -> None:
        super().__init__((address, 0), _Challenge)
        self.address = address
        self.status = 401
        self.headers: dict[str, str] = {}
        self.shown: list[str] = []
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def host(self) -> str:
        return f"{self.address}:{self.server_port}"

    def challenge(self, header: str) -> None:
        self.status, self.headers = 401, {"WWW-Authenticate": header}

    def redirect(self, url: str) -> None:
        self.status, self.headers = 307, {"Location": url}


class _Challenge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast("Challenger", self.server)
        server.shown.append(self.headers.get("Authorization", ""))
        self.send_response(server.status)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serving(server: Challenger) -> Iterator[Challenger]:
    with server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Hosts(trio.abc.HostnameResolver):
    """The system's resolver with two additional names."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        name = host.decode() if isinstance(host, bytes) else host
        name = RESOLVED.get(name, name)
        return await trio.to_thread.run_sync(socket.getaddrinfo, name, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Scene:
    """A registry, a login for it, a client, and traps at all other addresses."""

    challenger: Challenger
    traps: dict[str, TokenServer]
    registry: Registry

    def url(self, address: str) -> str:
        """Return a realm that leads to a trap."""
        return f"http://{address}:{self.traps[address].server_port}/token"

    async def ask(self) -> None:
        await self.registry.manifest(Reference(self.challenger.host, "team/app", "1"))

    @property
    def caught(self) -> list[object]:
        """Return every request that reached a trap."""
        return [request for trap in self.traps.values() for request in trap.shown]


@pytest.fixture(scope="module", autouse=True)
def alone() -> None:
    settle([PUBLIC, OTHER, METADATA, PRIVATE])


@pytest.fixture
def traps() -> Iterator[dict[str, TokenServer]]:
    with ExitStack() as stack:
        found = {address: stack.enter_context(token_server(lambda scope, user: "t", address)) for address in TRAPS}
        for trap in found.values():
            trap.takes_anybody = True
        yield found


@pytest.fixture
def challenger() -> Iterator[Challenger]:
    with serving(Challenger()) as server:
        yield server


@pytest.fixture(params=["with a login", "without"])
async def scene(
    request: pytest.FixtureRequest, challenger: Challenger, traps: dict[str, TokenServer], desk: Desk
) -> AsyncIterator[Scene]:
    if request.param == "with a login":
        desk.login(desk.auth, "user", PASSWORD, challenger.host)
    trio.socket.set_custom_hostname_resolver(Hosts())
    registry = Registry(
        limits=Limits(chunk=1000), plain_http=[PUBLIC], credentials=Credentials(None, desk.identity), sleep=no_wait
    )
    async with registry:
        yield Scene(challenger, traps, registry)


async def no_wait(seconds: float) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("address", TRAPS)
def test_the_traps_record_requests(traps: dict[str, TokenServer], address: str) -> None:
    connection = HTTPConnection(address, traps[address].server_port)
    connection.request("GET", "/token")
    assert connection.getresponse().status == 200
    connection.close()
    assert len(traps[address].shown) == 1


async def test_a_realm_of_its_own_is_shown_the_login(challenger: Challenger, desk: Desk) -> None:
    desk.login(desk.auth, "user", PASSWORD, challenger.host)
    with token_server(lambda scope, user: "t", PUBLIC) as own:
        own.logins["user"] = PASSWORD
        challenger.challenge(f'Bearer realm="{own.url}"')
        async with Registry(plain_http=[PUBLIC], credentials=Credentials(None, desk.identity)) as registry:
            with pytest.raises(AccessDenied):
                await registry.manifest(Reference(challenger.host, "team/app", "1"))
        assert [one.authorization for one in own.shown] == [basic("user", PASSWORD)]
    assert challenger.shown == ["", "Bearer t"]


@pytest.mark.parametrize(
    "realm",
    [
        "file:///etc/shadow",
        "gopher://{metadata}/",
        "ftp://{metadata}/",
        "unix:///run/docker.sock",
        "javascript:alert(1)",
        "//{metadata}/token",
        "/token",
        "http:{metadata}",
        "http://",
        "http:///token",
        "http://user:password@{other}/token",
        "http://{other}@{metadata}/token",
        "http://{metadata}\\@{other}/",
        "http://{metadata}/\r\nX: y",
        "http://[::1/",
        "http://{other_host}:99999/",
        "http://{metadata}/token",
        "HTTP://{metadata}/token",
        "http://{private}/token",
        "http://{loopback}/token",
        "http://localhost:{loopback_port}/token",
        "http://127.1:{loopback_port}/token",
        "http://2130706433:{loopback_port}/token",
        "http://0x7f000001:{loopback_port}/token",
        "http://0.0.0.0:{loopback_port}/token",
        "http://[::ffff:127.0.0.1]:{loopback_port}/token",
        "http://[::1]:{loopback_port}/token",
        "http://metadata.test:{metadata_port}/token",
        "http://inner.test:{private_port}/token",
        "https://{metadata}/token",
    ],
)
async def test_a_realm_that_is_not_to_be_trusted_is_refused(scene: Scene, realm: str) -> None:
    facts = {"metadata": METADATA, "private": PRIVATE, "loopback": LOOPBACK, "other": OTHER}
    authorities = {name: f"{address}:{scene.traps[address].server_port}" for name, address in facts.items()}
    ports = {f"{name}_port": scene.traps[address].server_port for name, address in facts.items()}
    text = realm.format(**authorities, **ports, other_host=OTHER).replace("\r\n", "\r\n\t")
    scene.challenger.challenge(f'Bearer realm="{text}",service="s"')
    with pytest.raises((RegistryFailed, AccessDenied, Unreachable)) as caught:
        await scene.ask()
    assert scene.caught == []
    assert scene.challenger.shown == [""]
    assert "canary" not in caught.value.message


async def test_another_host_without_tls_is_shown_no_login(scene: Scene) -> None:
    scene.challenger.challenge(f'Bearer realm="{scene.url(OTHER)}"')
    with pytest.raises(ImgfsError):
        await scene.ask()
    assert all(request.authorization == "" and not request.form for request in scene.traps[OTHER].shown)


@pytest.mark.parametrize("member", ["auth", "identitytoken"])
async def test_another_host_without_tls_is_refused_where_there_is_a_login(
    challenger: Challenger, traps: dict[str, TokenServer], desk: Desk, member: str
) -> None:
    login = {"auth": basic("user", PASSWORD).split()[1]} if member == "auth" else {"identitytoken": "canary-identity"}
    desk.write(desk.auth, auths={challenger.host: login})
    challenger.challenge(f'Bearer realm="http://{OTHER}:{traps[OTHER].server_port}/token"')
    async with Registry(plain_http=[PUBLIC], credentials=Credentials(None, desk.identity)) as registry:
        with pytest.raises(RegistryFailed, match="without TLS; refused"):
            await registry.manifest(Reference(challenger.host, "team/app", "1"))
    assert traps[OTHER].shown == []


@pytest.mark.parametrize(
    "header", ['Basic realm="x"', 'Bearer realm="{realm}"', 'Basic realm="x", Bearer realm="{realm}"']
)
async def test_a_redirect_target_that_asks_for_a_login_gets_none(scene: Scene, header: str) -> None:
    with serving(Challenger(OTHER)) as other:
        other.challenge(header.format(realm=scene.url(OTHER)))
        scene.challenger.redirect(f"http://{other.host}/v2/team/app/manifests/1")
        with pytest.raises(AccessDenied):
            await scene.ask()
        assert set(other.shown) == {""}
    assert scene.caught == []


async def test_a_token_endpoint_does_not_lead_inside(scene: Scene) -> None:
    with serving(Challenger()) as endpoint:
        endpoint.redirect(scene.url(METADATA))
        scene.challenger.challenge(f'Bearer realm="http://{endpoint.host}/token"')
        with pytest.raises(RegistryFailed, match="link-local"):
            await scene.ask()
    assert scene.caught == []


@pytest.mark.parametrize("size", [10, 10_000], ids=["whole", "in parts"])
@pytest.mark.parametrize("address", [METADATA, PRIVATE, LOOPBACK])
async def test_an_upload_does_not_go_inside(scene: Scene, address: str, size: int) -> None:
    blob = Bytes(bytes(size))
    scene.challenger.status, scene.challenger.headers = 202, {"Location": scene.url(address)}
    destination = await scene.registry.destination(scene.challenger.host, "team/app")
    with pytest.raises((RegistryFailed, Unreachable)) as caught:
        await destination.upload(blob.descriptor, blob.read, lambda offset: None)
    assert address in caught.value.message
    assert scene.caught == []


async def test_an_upload_elsewhere_shows_no_login(scene: Scene) -> None:
    blob = Bytes(bytes(10))
    scene.challenger.status, scene.challenger.headers = 202, {"Location": scene.url(OTHER)}
    destination = await scene.registry.destination(scene.challenger.host, "team/app")
    await destination.upload(blob.descriptor, blob.read, lambda offset: None)
    assert [(one.method, one.authorization) for one in scene.traps[OTHER].shown] == [("PUT", "")]


async def test_a_registry_with_tls_does_not_lead_to_less(traps: dict[str, TokenServer], desk: Desk) -> None:
    authority = trustme.CA()
    server_side, client_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(PUBLIC).configure_cert(server_side)
    authority.configure_trust(client_side)
    with serving(Challenger(tls=server_side)) as challenger, token_server(lambda scope, user: "t", PUBLIC) as own:
        desk.login(desk.auth, "user", PASSWORD, challenger.host)
        credentials = Credentials(None, desk.identity)
        async with Registry(credentials=credentials, ssl_context=client_side) as registry:
            for realm in (own.url, f"http://{OTHER}:{traps[OTHER].server_port}/token"):
                challenger.challenge(f'Bearer realm="{realm}"')
                with pytest.raises(RegistryFailed, match="from https to http"):
                    await registry.manifest(Reference(challenger.host, "team/app", "1"))
                challenger.status, challenger.headers = 202, {"Location": realm}
                blob = Bytes(b"blob")
                destination = await registry.destination(challenger.host, "team/app")
                with pytest.raises(RegistryFailed, match="from https to http"):
                    await destination.upload(blob.descriptor, blob.read, lambda offset: None)
        assert own.shown == []
    assert traps[OTHER].shown == []


def test_through_a_mount_a_hostile_realm_is_one_error_and_no_request(
    challenger: Challenger, traps: dict[str, TokenServer], desk: Desk, tmp_path: Path
) -> None:
    desk.login(desk.auth, "user", PASSWORD, challenger.host)
    config = f"plain_http = {json.dumps([PUBLIC])}\nauth_file = {json.dumps(str(desk.auth))}\n"
    with Mounted(tmp_path, config) as mounted:
        mounted.start()
        for number, address in enumerate((METADATA, LOOPBACK, OTHER)):
            challenger.challenge(f'Bearer realm="http://{address}:{traps[address].server_port}/token"')
            with pytest.raises(OSError) as caught:
                os.readlink(mounted.image(f"{challenger.host}/team/app:{number}"))
            assert caught.value.errno == errno.EREMOTEIO
        assert PASSWORD not in mounted.log()
        mounted.stop()
    assert [request for trap in traps.values() for request in trap.shown] == []
