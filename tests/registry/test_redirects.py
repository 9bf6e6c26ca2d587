"""Redirects: they are followed only where they may lead, and without the registry's token."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import AccessDenied, RateLimited, RegistryFailed, RemoteError, TimedOut, Unreachable
from imgfs.oci.descriptor import Descriptor
from imgfs.registry.exchange import NOWHERE_SECONDS
from imgfs.registry.hosts.endpoint import check_url
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene

SECRET = "signature=canary-query"


def send_away(scene: Scene, storage: FakeRegistry, times: int | None = None) -> None:
    """Redirect blob requests to a storage server that has the blobs."""
    storage.add_blob(BLOB)
    url = f"{storage.url}/v2/bucket/blobs/{scene.blob.digest}?{SECRET}"
    scene.fake.fault(faults.redirect(url), "/blobs/", times)


async def test_a_blob_comes_from_where_the_registry_says(
    mock_clock: MockClock, scene: Scene, storage: FakeRegistry
) -> None:
    send_away(scene, storage)
    assert await scene.read() == BLOB
    assert await scene.read(100, 200) == BLOB[100:200]
    assert storage.log[1].range == "bytes=100-199"
    counters = scene.registry.statistics().hosts[scene.host]
    assert counters.requests == {"blob": 2, "redirect": 2}
    assert counters.sources["storage"] > 0 == counters.sources["registry"]
    assert counters.inflight == 0


async def test_a_token_stays_with_its_registry(
    mock_clock: MockClock, guarded: FakeRegistry, storage: FakeRegistry
) -> None:
    scene = Scene(mock_clock, guarded)
    async with scene.registry:
        await scene.ask("manifest")
        send_away(scene, storage)
        assert await scene.read() == BLOB
    assert "authorization" in guarded.log[-1].headers
    assert "authorization" not in storage.log[0].headers


async def test_a_token_is_not_sent_again_after_a_detour(
    mock_clock: MockClock, guarded: FakeRegistry, storage: FakeRegistry
) -> None:
    scene = Scene(mock_clock, guarded)
    async with scene.registry:
        await scene.ask("manifest")
        send_away(scene, storage)
        storage.fault(faults.redirect(f"{guarded.url}/v2/other/manifests/1"), times=None)
        with pytest.raises(AccessDenied):
            await scene.read()
    assert "authorization" not in guarded.log[-1].headers


@pytest.mark.parametrize(("status", "error"), [(400, RegistryFailed), (401, AccessDenied), (403, AccessDenied)])
async def test_an_expired_redirect_is_asked_for_anew_once(
    mock_clock: MockClock, scene: Scene, storage: FakeRegistry, status: int, error: type[RemoteError]
) -> None:
    send_away(scene, storage)
    storage.fault(faults.status(status))
    assert await scene.read() == BLOB
    assert scene.fake.requests() == 2
    storage.fault(faults.status(status), times=None)
    with pytest.raises(error, match=storage.host):
        await scene.read()
    assert scene.fake.requests() == 4


async def test_a_404_of_the_storage_says_nothing_about_the_blob(
    mock_clock: MockClock, scene: Scene, storage: FakeRegistry
) -> None:
    send_away(scene, storage)
    storage.fault(faults.status(404))
    with pytest.raises(RegistryFailed, match=f"{storage.host}, which answered 404"):
        await scene.read()


async def test_a_limit_of_the_storage_pauses_the_storage(
    mock_clock: MockClock, scene: Scene, storage: FakeRegistry
) -> None:
    send_away(scene, storage)
    storage.fault(faults.status(429, Retry_After="9"), times=None)
    with pytest.raises(RateLimited, match=storage.host):
        await scene.read()
    rests = [9] * 6 + [6]
    assert scene.slept == [pytest.approx(rest, abs=0.1) for rest in rests]
    assert await scene.ask("manifest") == MANIFEST
    assert len(scene.slept) == len(rests)


async def test_a_cut_from_the_storage_asks_the_registry_for_a_fresh_address(
    mock_clock: MockClock, scene: Scene, storage: FakeRegistry
) -> None:
    send_away(scene, storage)
    storage.fault(faults.cut_at(1000))
    assert await scene.read() == BLOB
    assert scene.fake.requests() == 2
    assert storage.log[1].range == f"bytes=1000-{len(BLOB) - 1}"


async def test_five_redirects_are_followed_and_six_are_not(mock_clock: MockClock, scene: Scene) -> None:
    for hop in range(5):
        scene.fake.fault(faults.redirect(f"?hop={hop}"))
    assert await scene.read() == BLOB
    for hop in range(6):
        scene.fake.fault(faults.redirect(f"?hop={hop}"))
    with pytest.raises(RegistryFailed, match="more than 5"):
        await scene.read()


async def test_redirects_that_come_slowly_end_within_two_minutes(mock_clock: MockClock, scene: Scene) -> None:
    for hop in range(5):
        scene.fake.fault(faults.slow(faults.redirect(f"?hop={hop}")))
    scene.fake.fault(faults.stall(), times=None)
    before = scene.clock.current_time()
    async with scene.impatience(29, release=True):
        with pytest.raises(TimedOut, match=r"redirects of registry .* come too slowly"):
            await scene.read()
    assert scene.clock.current_time() - before <= 120


async def test_a_circle_is_left(mock_clock: MockClock, scene: Scene, storage: FakeRegistry) -> None:
    send_away(scene, storage)
    storage.fault(faults.redirect(f"{scene.fake.url}/v2/{REPOSITORY}/blobs/{scene.blob.digest}"), times=None)
    with pytest.raises(RegistryFailed, match="circle"):
        await scene.read()


@pytest.mark.parametrize("url", ["http://registry.example/x", "ftp://registry.example/x"])
def test_https_never_leads_to_less(url: str) -> None:
    with pytest.raises(RegistryFailed):
        check_url(url, "https://registry.example/v2/", "redirect")


def test_http_may_lead_to_https() -> None:
    assert check_url("https://a.example/x?y#z", "http://registry.example/", "redirect") == "https://a.example/x?y"


class Names(trio.abc.HostnameResolver):
    """A resolver that answers from a table."""

    def __init__(self, table: dict[str, str]) -> None:
        self.table = table

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.table:
            raise socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
        address = self.table[name]
        return await trio.socket.getaddrinfo(address, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def named(clock: MockClock, fake: FakeRegistry, table: dict[str, str]) -> Scene:
    """A scene with a named registry without TLS. `table` must not change meanwhile."""
    table["registry.test"] = "127.0.0.1"
    trio.socket.set_custom_hostname_resolver(Names(table))
    port = fake.host.split(":")[1]
    return Scene(clock, fake, plain_http={"registry.test"}, host=f"registry.test:{port}")


async def test_a_name_on_the_registrys_own_network_is_followed(
    mock_clock: MockClock, fake: FakeRegistry, storage: FakeRegistry
) -> None:
    scene = await named(mock_clock, fake, {"storage.test": "127.0.0.1"})
    storage.add_blob(BLOB)
    port = storage.host.split(":")[1]
    fake.fault(faults.redirect(f"http://storage.test:{port}/v2/b/blobs/{scene.blob.digest}"), times=None)
    async with scene.registry:
        assert await scene.read() == BLOB


async def test_a_name_server_that_fails_for_a_while_does_not_cut_a_registry_off_from_its_storage(
    mock_clock: MockClock, fake: FakeRegistry, storage: FakeRegistry
) -> None:
    names = {"storage.test": "127.0.0.1"}
    scene = await named(mock_clock, fake, names)
    storage.add_blob(BLOB)
    port = storage.host.split(":")[1]
    fake.fault(faults.redirect(f"http://storage.test:{port}/v2/b/blobs/{scene.blob.digest}"), "/blobs/", times=None)
    async with scene.registry:
        await scene.ask("manifest")
        del names["registry.test"]
        with pytest.raises(RegistryFailed, match=r"storage\.test:\d+ is a loopback address"):
            await scene.read()
        names["registry.test"] = "127.0.0.1"
        mock_clock.jump(NOWHERE_SECONDS)
        assert await scene.read() == BLOB


@pytest.mark.parametrize("address", ["169.254.169.254", "10.1.2.3", "fe80::1", "fd00::1"])
async def test_a_name_of_an_inner_network_is_refused_after_dns(
    mock_clock: MockClock, fake: FakeRegistry, address: str
) -> None:
    scene = await named(mock_clock, fake, {"storage.test": address})
    fake.fault(faults.redirect("http://storage.test/x"), times=None)
    async with scene.registry:
        with pytest.raises(RegistryFailed, match=r"storage\.test is a (link-local|private) address"):
            await scene.read()


async def test_an_unresolvable_target_is_unreachable(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.redirect("http://nowhere.invalid/"), times=None)
    with pytest.raises(Unreachable):
        await scene.read()


async def test_an_expired_address_at_the_registrys_own_host_is_asked_for_anew_once(
    mock_clock: MockClock, scene: Scene
) -> None:
    other = scene.fake.add_blob(BLOB[::-1])
    address = faults.redirect(f"{scene.fake.url}/v2/{REPOSITORY}/blobs/{scene.blob.digest}?{SECRET}")
    scene.fake.fault(address, str(other), times=2)
    scene.fake.fault(faults.status(403), SECRET, times=1)
    turned = Descriptor(other, len(BLOB), "application/octet-stream")
    async with scene.registry.blob(scene.host, REPOSITORY, turned) as stream:
        assert b"".join([piece async for piece in stream]) == BLOB
    assert scene.fake.requests() == 4
