"""Hosts that send wrong bytes: errors name them, and other hosts, if there are any, are asked first for a while."""

from __future__ import annotations

import logging

import pytest
from trio.testing import MockClock

from imgfs.errors import SenderLeft, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.registry.hosts.health import SHUNNED_SECONDS
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.mirrors.hosts import HOST, kill
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene, kinds


async def wrong(scene: Scene) -> VerificationFailed:
    """Read the blob, find its bytes wrong as a caller that verifies the digest does, and return the error."""
    try:
        async with scene.registry.blob(HOST, REPOSITORY, scene.blob) as stream:
            assert b"".join([piece async for piece in stream]) != BLOB
            raise VerificationFailed("wrong")
    except VerificationFailed as error:
        return error


async def test_a_sender_of_wrong_bytes_is_named_and_avoided_for_ten_minutes_for_that_blob(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    first.fault(faults.wrong_bytes(), "/blobs/", times=None)
    with caplog.at_level(logging.WARNING, "imgfs.registry"):
        assert (await wrong(scene)).message.startswith(f"wrong; sent by {first.host}: ")
    assert [getattr(record, "host", "") for record in caplog.records] == [first.host]
    assert await scene.read() == BLOB
    assert await scene.ask("manifest") == MANIFEST
    assert (kinds(first), kinds(second)) == (["blob", "manifest"], ["blob"])
    scene.clock.jump(SHUNNED_SECONDS + 1)
    assert first.host in (await wrong(scene)).message


async def test_of_a_blob_from_several_all_are_left(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(lambda reply: faults.cut_at(3000)(faults.wrong_bytes()(reply) or reply), times=None)
    assert (await wrong(scene)).message.startswith(f"wrong; sent by {', '.join(sorted((first.host, second.host)))}: ")
    assert await scene.read() == BLOB
    assert (first.requests(), second.requests(), scene.fake.requests()) == (1, 1, 1)


async def test_who_goes_on_where_another_sent_too_much_is_named_too(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    """The first host sent correct bytes and then more than the blob has; the second host's bytes were wrong."""
    large = bytes(range(251)) * 4000
    descriptor = Descriptor(Digest.of(large), len(large), "application/octet-stream")
    first.add_blob(large)
    second.add_blob(large)
    first.fault(faults.longer(1), "/blobs/")
    second.fault(faults.wrong_bytes(), "/blobs/")
    async with scene.registry.blob(HOST, REPOSITORY, descriptor) as stream:
        assert sum([len(piece) async for piece in stream]) == len(large)
    blamed = scene.registry.blame(HOST, descriptor.digest, VerificationFailed("wrong"))
    assert second.requests() == 1
    assert blamed.message.startswith(f"wrong; sent by {', '.join(sorted((first.host, second.host)))}: ")


async def test_blame_after_the_stream_is_left_counts_too(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    await scene.read()
    blamed = scene.registry.blame(HOST, scene.blob.digest, VerificationFailed("wrong"))
    assert isinstance(blamed, SenderLeft)
    assert blamed.message.startswith(f"wrong; sent by {first.host}: ")
    await scene.read()
    assert (first.requests(), second.requests()) == (1, 1)


async def test_a_manifest_of_wrong_bytes_is_fetched_elsewhere(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.wrong_bytes(), times=None)
    for _ in range(2):
        assert (await scene.registry.manifest(scene.by_digest))[1] == MANIFEST
    assert (first.requests(), second.requests()) == (1, 2)


async def test_each_of_several_senders_of_wrong_bytes_is_avoided_once(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    """A caller that retries for as long as it gets SenderLeft asks each host once."""
    for liar in (first, second, scene.fake):
        liar.fault(faults.wrong_bytes(), "/blobs/", times=None)
    errors = [type(await wrong(scene)) for _ in range(4)]
    assert errors == [SenderLeft, SenderLeft, VerificationFailed, VerificationFailed]
    assert (first.requests(), second.requests(), scene.fake.requests()) == (2, 1, 1)


async def test_a_sender_asked_again_because_others_are_dead_causes_no_further_retry(
    mock_clock: MockClock, scene: Scene, first: FakeRegistry, second: FakeRegistry
) -> None:
    first.fault(faults.wrong_bytes(), "/blobs/", times=None)
    kill(second)
    kill(scene.fake)
    errors = [type(await wrong(scene)) for _ in range(2)]
    assert errors == [SenderLeft, VerificationFailed]


async def test_where_there_is_no_choice_nobody_is_left(mock_clock: MockClock, fake: FakeRegistry) -> None:
    scene = Scene(mock_clock, fake)
    async with scene.registry:
        await scene.read()
        blamed = scene.registry.blame(fake.host, scene.blob.digest, VerificationFailed("wrong"))
        assert not isinstance(blamed, SenderLeft)
        assert f"; sent by {fake.host}: " in blamed.message
        assert await scene.read() == BLOB
