"""Resolving names: one request, a record, a new request on demand, and failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.errors import (
    AccessDenied,
    AlreadyExists,
    ImgfsError,
    Malformed,
    NotFound,
    RateLimited,
    RegistryFailed,
    Unsupported,
    VerificationFailed,
)
from imgfs.oci.descriptor import DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference, Source
from imgfs.testing.faults import Action, html, stall, status, wrong_bytes
from imgfs.testing.images import AMD64, ARM64, File, image, index, layer
from imgfs.testing.registry import FakeRegistry
from tests.transfer.scene import REPOSITORY, Scene, opened

ONE = image([layer([File("f", b"one")])])
TWO = image([layer([File("f", b"two")])])
UNKNOWN = "application/vnd.test.unknown.v1+json"


async def test_a_name_is_asked_for_once_and_recorded(scene: Scene, tmp_path: Path, mock_clock: MockClock) -> None:
    digest = await scene.resolved(ONE)
    assert digest == ONE.digest
    assert await scene.resolver.resolve(scene.reference()) == digest
    assert scene.fake.requests() == 1
    assert await scene.content.read(digest) == ONE.document
    assert await scene.catalog.sources(Digest.of(ONE.config)) == [Source(scene.fake.host, REPOSITORY)]
    async with opened(tmp_path / "state", scene.fake, mock_clock) as again:
        assert await again.resolver.resolve(again.reference()) == digest
        assert await again.resolver.is_known(digest)
    assert scene.fake.requests() == 1


async def test_a_digest_is_resolved_like_a_tag(scene: Scene) -> None:
    ONE.add_to(scene.fake, REPOSITORY)
    reference = Reference(scene.fake.host, REPOSITORY, None, ONE.digest)
    assert await scene.resolver.resolve(reference) == ONE.digest
    assert scene.names.get(str(reference))
    absent = Reference(scene.fake.host, REPOSITORY, None, Digest.of(b"absent"))
    with pytest.raises(NotFound):
        await scene.resolver.resolve(absent)


async def test_fifty_who_ask_for_one_name_cause_one_request(scene: Scene) -> None:
    ONE.add_to(scene.fake, REPOSITORY, "1")
    scene.fake.fault(stall(0), "manifests")
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(scene.resolver.resolve, scene.reference())
        await scene.stalled()
        scene.fake.release()
    assert scene.fake.requests() == 1


async def test_a_cancelled_asker_leaves_the_answer_to_the_others(scene: Scene) -> None:
    ONE.add_to(scene.fake, REPOSITORY, "1")
    scene.fake.fault(stall(0), "manifests")
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def impatient() -> None:
            with first:
                await scene.resolver.resolve(scene.reference())

        nursery.start_soon(impatient)
        await scene.stalled()
        nursery.start_soon(scene.resolver.resolve, scene.reference())
        await wait_all_tasks_blocked(0.01)
        first.cancel()
        await wait_all_tasks_blocked(0.01)
        scene.fake.release()
    assert (scene.fake.requests(), scene.names.get(str(scene.reference())) is not None) == (1, True)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (status(404), NotFound),
        (status(403), AccessDenied),
        (status(429), RateLimited),
        (status(500), RegistryFailed),
        (html(), Malformed),
        (wrong_bytes(), VerificationFailed),
    ],
)
async def test_a_failure_records_nothing_is_told_remembered_and_cleared(
    scene: Scene, mock_clock: MockClock, fault: Action, error: type[ImgfsError]
) -> None:
    ONE.add_to(scene.fake, REPOSITORY, "1")
    scene.fake.fault(fault, "", times=None)
    place = f"images/{scene.fake.host}"
    with pytest.raises(error) as caught:
        await scene.resolver.resolve(scene.reference())
    asked = scene.fake.requests()
    with pytest.raises(error):
        await scene.resolver.resolve(scene.reference())
    assert scene.fake.requests() == asked
    assert scene.failures.get(place) == caught.value.message
    assert (list(scene.names), list(scene.content)) == ([], [])
    scene.fake.reset()
    scene.forget_failures()
    assert await scene.resolver.resolve(scene.reference()) == ONE.digest
    assert scene.failures.get(place) is None


@pytest.mark.parametrize(
    ("document", "media_type", "error"),
    [
        (b"{", OCI_MANIFEST, Malformed),
        (ONE.document, OCI_INDEX, Malformed),
        (b'{"schemaVersion":1}', DOCKER_SCHEMA1[0], Unsupported),
        (json.dumps({"schemaVersion": 2, "mediaType": "text/x"}).encode(), OCI_MANIFEST, Malformed),
        (json.dumps({"schemaVersion": 2, "mediaType": UNKNOWN}).encode(), UNKNOWN, Unsupported),
        (json.dumps({"schemaVersion": 2, "mediaType": UNKNOWN}).encode(), "application/json", Unsupported),
        (json.dumps({"schemaVersion": 2, "mediaType": UNKNOWN}).encode(), "text/html", Malformed),
    ],
    ids=["cut", "contradiction", "schema 1", "another type", "unknown", "unknown, unsaid", "unknown, a page"],
)
async def test_what_is_no_image_is_not_recorded(
    scene: Scene, document: bytes, media_type: str, error: type[ImgfsError]
) -> None:
    scene.fake.add_manifest(REPOSITORY, "1", document, media_type)
    with pytest.raises(error):
        await scene.resolver.resolve(scene.reference())
    assert (list(scene.names), list(scene.content)) == ([], [])


async def test_refreshing_asks_by_head_and_records_what_is_new(scene: Scene) -> None:
    await scene.resolved(ONE)
    name = str(scene.reference())
    scene.fake.reset()
    assert await scene.resolver.refresh(name) == ONE.digest
    assert [one.method for one in scene.fake.log] == ["HEAD"]
    TWO.add_to(scene.fake, REPOSITORY, "1")
    assert await scene.resolver.refresh(name) == TWO.digest
    found = scene.names.get(name)
    assert found is not None
    assert found.digest == TWO.digest
    assert await scene.content.read(TWO.digest) == TWO.document
    assert ONE.digest in scene.content, "names never touch content"


async def test_a_tag_that_moved_to_what_is_here_costs_its_head_alone(scene: Scene) -> None:
    await scene.resolved(ONE)
    await scene.resolved(TWO, "2")
    scene.fake.reset()
    TWO.add_to(scene.fake, REPOSITORY, "1")
    assert await scene.resolver.refresh(str(scene.reference())) == TWO.digest
    assert [one.method for one in scene.fake.log] == ["HEAD"]
    found = scene.names.get(str(scene.reference()))
    assert found is not None
    assert found.digest == TWO.digest


async def test_a_refresh_that_fails_leaves_the_name_as_it_was(scene: Scene) -> None:
    await scene.resolved(ONE)
    before = scene.names.get(str(scene.reference()))
    scene.fake.fault(status(404), "", times=None)
    with pytest.raises(NotFound):
        await scene.resolver.refresh(str(scene.reference()))
    assert scene.names.get(str(scene.reference())) == before
    assert scene.failures.get(f"images/{scene.fake.host}")


async def test_local_names_and_digests_have_nothing_to_refresh(scene: Scene) -> None:
    await scene.resolver.register("tool", ONE.digest)
    by_digest = f"{scene.fake.host}/{REPOSITORY}@{ONE.digest}"
    await scene.resolver.register(by_digest, ONE.digest)
    assert [await scene.resolver.refresh(name) for name in ("tool", by_digest)] == [ONE.digest] * 2
    with pytest.raises(NotFound, match="is not registered"):
        await scene.resolver.refresh("other")
    assert scene.fake.requests() == 0


async def test_registering_asks_nobody_and_remembers_where_to_ask(scene: Scene) -> None:
    ONE.add_to(scene.fake, REPOSITORY)
    name = str(scene.reference())
    await scene.resolver.register(name, ONE.digest)
    with pytest.raises(AlreadyExists):
        await scene.resolver.register(name, TWO.digest)
    assert await scene.resolver.is_known(ONE.digest)
    assert not await scene.resolver.is_known(TWO.digest)
    assert scene.fake.requests() == 0
    assert await scene.documents.platform_image(ONE.digest)
    await scene.resolver.register(name, TWO.digest, replace=True)
    assert [one.digest for one in scene.names] == [TWO.digest]


async def test_a_local_name_of_nothing_is_not_found_without_a_request(scene: Scene) -> None:
    await scene.resolver.register("tool", TWO.digest)
    with pytest.raises(NotFound, match="no known image says where"):
        await scene.documents.platform_image(TWO.digest)
    assert scene.fake.requests() == 0


async def test_resolving_an_index_gets_the_manifest_of_this_platform_too(scene: Scene) -> None:
    made = index([image([], platform=ARM64), ONE])
    digest = await scene.resolved(made)
    assert (digest, scene.fake.requests("manifest")) == (made.digest, 2)
    assert ONE.digest in scene.content
    found = await scene.documents.stored_platform_image(digest, AMD64)
    assert found is not None
    assert found.digest == ONE.digest


async def test_an_index_without_this_platform_still_has_a_name(scene: Scene) -> None:
    digest = await scene.resolved(index([image([], platform=ARM64)]))
    assert scene.names.digests() == [digest]
    assert "it has linux/arm64/v8" in (scene.failures.get(digest) or "")
    with pytest.raises(NotFound, match="nothing for linux/amd64; it has linux/arm64/v8"):
        await scene.images.snapshot(digest)


async def test_a_host_that_answers_nothing_leaves_other_hosts_alone(scene: Scene) -> None:
    with FakeRegistry() as other:
        ONE.add_to(scene.fake, REPOSITORY, "1")
        TWO.add_to(other, REPOSITORY, "1")
        scene.fake.fault(stall(), "")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.resolver.resolve, scene.reference())
            await scene.stalled()
            assert await scene.resolver.resolve(Reference(other.host, REPOSITORY, "1")) == TWO.digest
            scene.fake.release()
