"""The requests to a registry without faults, and what the caller gets."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.errors import Invalid, Malformed, NotFound, TooLarge, VerificationFailed
from imgfs.oci.descriptor import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference
from imgfs.registry.limits import Limits
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, MANIFEST, REPOSITORY, Scene, kinds


async def test_a_manifest_is_one_request_with_its_exact_bytes(mock_clock: MockClock, scene: Scene) -> None:
    descriptor, data = await scene.registry.manifest(scene.reference)
    assert (descriptor, data) == (Descriptor(Digest.of(MANIFEST), len(MANIFEST), OCI_MANIFEST), MANIFEST)
    assert kinds(scene.fake) == ["manifest"]
    assert OCI_INDEX in scene.fake.log[0].headers["accept"]
    assert DOCKER_MANIFEST in scene.fake.log[0].headers["accept"]


async def test_a_tag_check_is_one_head(mock_clock: MockClock, scene: Scene) -> None:
    descriptor = await scene.registry.resolve(scene.reference)
    assert descriptor == Descriptor(scene.digest, len(MANIFEST), OCI_MANIFEST)
    assert kinds(scene.fake) == ["tag"]


async def test_a_tag_check_falls_back_to_a_get_when_the_head_says_too_little(
    mock_clock: MockClock, scene: Scene
) -> None:
    scene.fake.fault(faults.status(200, MANIFEST, Content_Type=OCI_MANIFEST), "HEAD")
    assert (await scene.registry.resolve(scene.reference)).digest == scene.digest
    assert kinds(scene.fake) == ["tag", "manifest"]


async def test_a_head_that_names_another_digest_than_asked_is_refused(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(lambda reply: reply.headed(Docker_Content_Digest=Digest.of(b"other")))
    with pytest.raises(VerificationFailed):
        await scene.registry.resolve(scene.by_digest)


async def test_a_head_over_the_limit_is_refused(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.huge((4 << 20) + 1))
    with pytest.raises(TooLarge):
        await scene.registry.resolve(scene.reference)


async def test_a_blob_is_one_request_with_raw_bytes(mock_clock: MockClock, scene: Scene) -> None:
    assert await scene.read() == BLOB
    assert kinds(scene.fake) == ["blob"]
    assert scene.fake.log[0].range is None
    assert scene.fake.log[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("offset", "end"), [(0, 1), (1, None), (100, 200), (len(BLOB) - 1, None), (0, len(BLOB)), (5000, 5001)]
)
async def test_a_part_of_a_blob_is_exactly_that_part(
    mock_clock: MockClock, scene: Scene, offset: int, end: int | None
) -> None:
    assert await scene.read(offset, end) == BLOB[offset:end]
    assert scene.fake.requests() == 1
    assert sum(request.sent for request in scene.fake.log) == len(BLOB[offset:end])


async def test_an_empty_range_is_no_request(mock_clock: MockClock, scene: Scene) -> None:
    assert await scene.read(len(BLOB)) == b""
    assert await scene.read(7, 7) == b""
    assert scene.fake.requests() == 0


@pytest.mark.parametrize(("offset", "end"), [(-1, None), (len(BLOB) + 1, None), (5, 4), (0, len(BLOB) + 1)])
async def test_a_range_outside_the_blob_is_invalid(
    mock_clock: MockClock, scene: Scene, offset: int, end: int | None
) -> None:
    with pytest.raises(Invalid):
        await scene.read(offset, end)


async def test_calls_share_a_connection(mock_clock: MockClock, scene: Scene) -> None:
    for what in ("manifest", "tag", "blob", "manifest"):
        await scene.ask(what)
    assert len({request.peer for request in scene.fake.log}) == 1


async def test_a_missing_tag_is_not_found_and_says_where(mock_clock: MockClock, scene: Scene) -> None:
    with pytest.raises(NotFound, match=rf"{scene.fake.host}/team/app:nope.*404 MANIFEST_UNKNOWN"):
        await scene.registry.manifest(Reference(scene.fake.host, REPOSITORY, "nope"))
    assert scene.fake.requests() == 1


async def test_leaving_a_stream_early_closes_its_connection_without_draining(
    mock_clock: MockClock, scene: Scene
) -> None:
    scene.fake.fault(faults.stall(after=100))
    async with scene.registry.blob(scene.fake.host, REPOSITORY, scene.blob) as stream:
        await anext(stream)
    assert await scene.read() == BLOB
    first, second = scene.fake.log
    assert first.peer != second.peer
    assert first.sent == 100


async def test_a_cancelled_stream_leaves_the_registry_usable(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.stall(after=100))
    with trio.move_on_after(1) as scope:
        async with scene.registry.blob(scene.fake.host, REPOSITORY, scene.blob) as stream:
            await anext(stream)
            scope.cancel()
            await anext(stream)
    assert scope.cancelled_caught
    assert await scene.read() == BLOB


@pytest.mark.parametrize("limits", [Limits(streams=2, short=0), Limits(streams=1, short_streams=2)])
async def test_streams_to_one_host_are_limited(mock_clock: MockClock, fake: FakeRegistry, limits: Limits) -> None:
    scene = Scene(mock_clock, fake, limits)
    fake.fault(faults.stall(after=10), times=None)
    async with scene.registry, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(scene.read)
        for _ in range(2):
            await trio.to_thread.run_sync(fake.valve.wait_arrival)
        await wait_all_tasks_blocked(0.01)
        assert fake.requests() == 2
        fake.release(5)
    assert fake.requests() == 5


async def test_short_streams_and_long_ones_do_not_wait_for_each_other(
    mock_clock: MockClock, fake: FakeRegistry
) -> None:
    scene = Scene(mock_clock, fake, Limits(streams=1, spare_streams=0, short=len(BLOB) - 1, short_streams=1))
    fake.fault(faults.stall(after=10))
    async with scene.registry, trio.open_nursery() as nursery:
        nursery.start_soon(scene.read)
        await trio.to_thread.run_sync(fake.valve.wait_arrival)
        async with scene.registry.blob(fake.host, REPOSITORY, scene.blob, 1) as stream:
            assert b"".join([piece async for piece in stream]) == BLOB[1:]
        fake.release()


async def test_statistics_count_requests_bytes_and_retries(mock_clock: MockClock, scene: Scene) -> None:
    before = scene.registry.statistics()
    scene.fake.fault(faults.cut_at(1000), "/blobs/")
    await scene.ask("manifest")
    await scene.ask("blob")
    await scene.ask("tag")
    counters = scene.registry.statistics().hosts[scene.fake.host]
    assert counters.requests == {"manifest": 1, "blob": 2, "tag": 1}
    assert counters.received == len(MANIFEST) + len(BLOB)
    assert counters.retries == 1
    assert counters.answers == {"2xx": 4}
    assert counters.sources == {"registry": counters.received}
    assert (counters.inflight, sum(counters.first_byte.counts), sum(counters.whole.counts)) == (0, 4, 4)
    assert scene.registry.statistics().requests == 4
    assert before.requests == 0


async def test_statistics_tell_what_is_under_way_and_how_long_it_took(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.stall(), "/blobs/")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.read)
        await trio.to_thread.run_sync(scene.fake.valve.wait_arrival)
        await wait_all_tasks_blocked(0.01)
        assert scene.registry.statistics().hosts[scene.fake.host].inflight == 1
        mock_clock.jump(20)
        scene.fake.release()
    counters = scene.registry.statistics().hosts[scene.fake.host]
    assert (counters.inflight, counters.first_byte.sum, counters.whole.sum) == (0, 20, 20)


@pytest.mark.parametrize(
    ("after", "asked"),
    [(-1, ("blob", "tag", "manifest")), (10, ("blob", "manifest"))],
    ids=["before the headers", "in the body"],
)
async def test_what_a_cancelled_reader_leaves_is_no_longer_under_way(
    mock_clock: MockClock, scene: Scene, after: int, asked: Sequence[str]
) -> None:
    scene.fake.fault(faults.stall(after), times=None)
    for what in asked:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.ask, what)
            await trio.to_thread.run_sync(scene.fake.valve.wait_arrival)
            await wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
    assert scene.registry.statistics().hosts[scene.fake.host].inflight == 0


async def test_statistics_count_429_and_timeouts(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.status(429, Retry_After="1"))
    await scene.ask("manifest")
    scene.fake.fault(faults.stall(), "/blobs/")
    async with scene.impatience(31):
        await scene.ask("blob")
    counters = scene.registry.statistics().hosts[scene.fake.host]
    assert (counters.throttled, counters.answers["4xx"], counters.failures["TimedOut"]) == (1, 1, 1)
    timeouts = next(one for one in scene.registry.statistics().families() if "timeouts" in one.name)
    assert [one.value for one in timeouts.samples] == [1]


async def test_each_try_that_fails_is_told(mock_clock: MockClock, scene: Scene) -> None:
    told: list[str] = []
    scene.fake.fault(faults.cut_at(1000), "/blobs/")
    scene.fake.fault(faults.status(503), "/blobs/")
    blob = scene.registry.blob(
        scene.host, REPOSITORY, scene.blob, failed=lambda error: told.append(type(error).__name__)
    )
    async with blob as stream:
        assert b"".join([piece async for piece in stream]) == BLOB
    assert sorted(told) == ["RegistryFailed", "Unreachable"]


async def test_a_manifest_by_digest_is_verified_against_it(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.wrong_bytes())
    with pytest.raises(VerificationFailed, match=str(scene.digest)):
        await scene.registry.manifest(scene.by_digest)


async def test_a_manifest_by_tag_is_verified_against_the_stated_digest(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(faults.wrong_bytes())
    with pytest.raises(VerificationFailed):
        await scene.registry.manifest(scene.reference)


async def test_a_manifest_by_sha512_keeps_its_algorithm(mock_clock: MockClock, scene: Scene) -> None:
    digest = Digest(f"sha512:{hashlib.sha512(MANIFEST).hexdigest()}")
    scene.fake.fault(faults.status(200, MANIFEST, Content_Type=OCI_MANIFEST))
    reference = Reference(scene.fake.host, REPOSITORY, None, digest)
    assert (await scene.registry.manifest(reference))[0].digest == digest


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        (f"{OCI_INDEX}; charset=utf-8", OCI_INDEX),
        (OCI_MANIFEST.upper(), OCI_MANIFEST),
        ("application/json", ""),
        ("", ""),
    ],
)
async def test_the_media_type_is_the_content_types_if_it_says_one(
    mock_clock: MockClock, scene: Scene, stated: str, kept: str
) -> None:
    scene.fake.fault(faults.status(200, MANIFEST, Content_Type=stated))
    assert (await scene.registry.manifest(scene.reference))[0].media_type == kept


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "identity"])
async def test_a_compressed_manifest_is_read(mock_clock: MockClock, scene: Scene, encoding: str) -> None:
    body = MANIFEST if encoding == "identity" else gzip.compress(MANIFEST, mtime=0)
    scene.fake.fault(faults.status(200, body, Content_Type=OCI_MANIFEST, Content_Encoding=encoding))
    assert await scene.ask("manifest") == MANIFEST


@pytest.mark.parametrize(
    ("body", "encoding", "error"),
    [
        (gzip.compress(bytes(5 << 20), mtime=0), "gzip", TooLarge),
        (gzip.compress(MANIFEST, mtime=0)[:-9], "gzip", Malformed),
        (MANIFEST, "gzip", Malformed),
        (MANIFEST, "br", Malformed),
    ],
)
async def test_a_compressed_manifest_is_bounded_and_checked(
    mock_clock: MockClock, scene: Scene, body: bytes, encoding: str, error: type[Exception]
) -> None:
    scene.fake.fault(faults.status(200, body, Content_Type=OCI_MANIFEST, Content_Encoding=encoding))
    with pytest.raises(error):
        await scene.ask("manifest")


async def test_a_blob_is_never_inflated(mock_clock: MockClock, scene: Scene) -> None:
    scene.fake.fault(lambda reply: reply.headed(Content_Encoding="gzip"))
    assert await scene.read() == BLOB
