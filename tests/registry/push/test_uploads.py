"""Uploads of blobs, in one request and in parts, without faults."""

from __future__ import annotations

import ssl
from pathlib import Path

import trio
import trustme
from trio.testing import MockClock

from imgfs.registry.client import Registry
from imgfs.registry.http.request import Outgoing
from imgfs.registry.limits import Limits
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import CHUNK, LARGE, REPOSITORY, SMALL, Bytes, Pushing, parts


async def test_a_small_blob_takes_two_requests(mock_clock: MockClock, pushing: Pushing) -> None:
    blob = Bytes(SMALL)
    await pushing.upload(blob)
    assert pushing.fake.asked() == ["POST upload", "PUT upload"]
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL
    assert pushing.fake.log[1].headers["content-type"] == "application/octet-stream"
    assert pushing.offsets == [0, len(SMALL)]


async def test_an_empty_blob_is_sent(mock_clock: MockClock, pushing: Pushing) -> None:
    blob = Bytes(b"")
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == b""


async def test_a_large_blob_goes_in_parts_and_the_last_request_sends_nothing(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    ends = [*range(CHUNK, len(LARGE), CHUNK), len(LARGE)]
    assert parts(pushing.fake) == [
        *(("PATCH", f"{start}-{end - 1}", end - start) for start, end in zip([0, *ends], ends, strict=False)),
        ("PUT", None, 0),
    ]
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert pushing.offsets == [0, *ends, len(LARGE)]
    assert pushing.fake.sent() == len(LARGE)
    assert pushing.registry.statistics().hosts[pushing.fake.host].sent == len(LARGE)


async def test_a_registry_that_wants_larger_parts_gets_them(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.least_part = 3 * CHUNK
    await pushing.upload(Bytes(LARGE))
    assert [size for method, _, size in parts(pushing.fake) if method == "PATCH"] == [3 * CHUNK, len(LARGE) - 3 * CHUNK]


async def test_over_tls_it_is_the_same(tmp_path: Path) -> None:
    """Also for a registry behind a proxy that writes http URLs for itself."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (tmp_path / "registry.example").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "registry.example/ca.pem"))
    blob = Bytes(bytes(range(256)) * 16 * 80)
    with PushRegistry(tls=context) as fake:
        fake.elsewhere = f"http://{fake.host}"
        (tmp_path / "registry.example/hosts.toml").write_text(f'server = "{fake.url}"\nca = "ca.pem"\n')
        async with Registry(limits=Limits(chunk=300_000), hosts_path=[tmp_path]) as registry:
            destination = await registry.destination("registry.example", REPOSITORY)
            await destination.upload(blob.descriptor, blob.read, lambda offset: None)
        assert fake.blob(REPOSITORY, blob.descriptor.digest) == blob.data
        assert fake.asked("upload") == ["POST upload", "PATCH upload", "PATCH upload", "PUT upload"]


async def test_at_most_so_many_blobs_go_at_a_time(mock_clock: MockClock, pushing: Pushing) -> None:
    running, most = 0, 0
    destination = await pushing.destination()

    async def send(number: int) -> None:
        nonlocal running, most
        blob = Bytes(SMALL + bytes([number]))

        def read(start: int, end: int) -> Outgoing:
            nonlocal running, most
            running += 1
            most = max(most, running)
            return blob.read(start, end)

        def moved(offset: int) -> None:
            nonlocal running
            running -= offset > 0

        await destination.upload(blob.descriptor, read, moved)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(send, number)
    assert 1 < most <= 4
