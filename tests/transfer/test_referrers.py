"""Referrers: listed by registries, recorded, found by digest, and read only if they refer to the image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import NotFound, RemoteError, Unsupported, VerificationFailed
from imgfs.leases.pins import Pins
from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.testing.build import OCI_EMPTY, Image, index, referrer
from imgfs.testing.faults import stall, status
from imgfs.testing.images import ARM64, File, image, layer
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from imgfs.transfer.referrers import ReferrerFetcher
from tests.transfer.scene import REPOSITORY, Scene, opened

BOX = image([layer([File("f", b"x")])])
SBOM, SIGNATURE = "application/spdx+json", "application/vnd.test.signature"
LISTED = referrer(BOX, SBOM, b"an sbom", annotations={"made": "here"})
SIGNED = referrer(BOX, SIGNATURE, b"a signature")


@pytest.fixture
async def referrers(scene: Scene) -> ReferrerFetcher:
    """The referrers of a resolved image, which an SBOM and a signature refer to."""
    await scene.resolved(BOX)
    for one in (LISTED, SIGNED):
        one.add_to(scene.fake, REPOSITORY)
    scene.fake.reset()
    return made(scene)


def made(scene: Scene) -> ReferrerFetcher:
    return ReferrerFetcher(scene.catalog, scene.documents, scene.client, scene.failures, scene.nursery, Pins())


async def digests(referrers: ReferrerFetcher) -> list[str]:
    return [one.descriptor.digest for one in await referrers.known(BOX.digest)]


async def test_nothing_is_known_before_somebody_asks_and_all_of_it_after_a_restart(
    scene: Scene, referrers: ReferrerFetcher, tmp_path: Path, mock_clock: MockClock
) -> None:
    assert await referrers.known(BOX.digest) == []
    assert scene.fake.requests() == 0
    found = await referrers.refresh(BOX.digest)
    assert {one.descriptor.digest: one.descriptor.artifact_type for one in found} == {
        LISTED.digest: SBOM,
        SIGNED.digest: SIGNATURE,
    }
    assert [one.descriptor.annotations for one in found if one.descriptor.digest == LISTED.digest] == [{"made": "here"}]
    assert {one.sources for one in found} == {(Source(scene.fake.host, REPOSITORY),)}
    assert (scene.fake.requests("referrers"), scene.fake.requests()) == (1, 1)
    async with opened(tmp_path / "state", scene.fake, mock_clock) as again:
        assert await made(again).known(BOX.digest) == found


async def test_one_type_is_asked_for_and_leaves_what_is_known_of_others(
    scene: Scene, referrers: ReferrerFetcher
) -> None:
    await referrers.refresh(BOX.digest)
    scene.fake.fault(status(200, json.dumps({"manifests": []}).encode(), Content_Type=OCI_INDEX))
    assert await referrers.refresh(BOX.digest, SBOM) == []
    assert await digests(referrers) == [SIGNED.digest]
    assert [one.descriptor.digest for one in await referrers.refresh(BOX.digest, SBOM)] == [LISTED.digest]
    assert "artifactType=application%2Fspdx%2Bjson" in scene.fake.log[-1].path


async def test_fifty_who_ask_cause_one_request(scene: Scene, referrers: ReferrerFetcher) -> None:
    scene.fake.fault(stall(), "referrers")
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(referrers.refresh, BOX.digest)
        await scene.stalled()
        scene.fake.release()
    assert scene.fake.requests("referrers") == 1


async def test_reading_fetches_the_document_and_makes_its_content_known(
    scene: Scene, referrers: ReferrerFetcher
) -> None:
    found = {one.descriptor.digest: one for one in await referrers.refresh(BOX.digest)}
    blob = Digest.of(b"an sbom")
    assert await scene.catalog.descriptor(blob) is None
    await referrers.read(found[LISTED.digest])
    assert await scene.content.read(LISTED.digest) == LISTED.document
    descriptor = await scene.catalog.descriptor(blob)
    assert descriptor is not None
    assert await scene.blobs.read(descriptor) == b"an sbom"
    scene.fake.reset()
    await referrers.read(found[LISTED.digest])
    assert scene.fake.requests() == 0


async def test_content_of_a_document_that_was_stored_by_other_ways_is_known_too(
    scene: Scene, referrers: ReferrerFetcher
) -> None:
    await scene.content.add(LISTED.digest, LISTED.document)
    for one in await referrers.refresh(BOX.digest):
        await referrers.read(one)
    assert await scene.catalog.sources(Digest.of(b"an sbom")) == [Source(scene.fake.host, REPOSITORY)]


def lying(*entries: dict[str, object]) -> Reply:
    return Reply(body=json.dumps({"manifests": entries}).encode()).headed(Content_Type=OCI_INDEX)


@pytest.mark.parametrize("what", [BOX, image([layer([File("g")])]), referrer(LISTED, SBOM, b"of another")])
async def test_what_refers_to_something_else_is_listed_and_not_read(
    scene: Scene, referrers: ReferrerFetcher, what: Image
) -> None:
    what.add_to(scene.fake, REPOSITORY)
    scene.fake.fault(lambda _: lying(what.descriptor))
    (found,) = await referrers.refresh(BOX.digest)
    with pytest.raises(VerificationFailed, match=f"{scene.fake.host}/{REPOSITORY} lists it for {BOX.digest}"):
        await referrers.read(found)
    assert scene.failures.get(what.digest)


async def test_two_that_refer_to_each_other_end(scene: Scene, referrers: ReferrerFetcher) -> None:
    scene.fake.fault(lambda _: lying(LISTED.descriptor), "referrers", times=None)
    for digest in (BOX.digest, LISTED.digest):
        assert [one.descriptor.digest for one in await referrers.refresh(digest)] == [LISTED.digest]


async def test_another_size_than_listed_is_refused(scene: Scene, referrers: ReferrerFetcher) -> None:
    scene.fake.fault(lambda _: lying(LISTED.descriptor | {"size": 7}))
    (found,) = await referrers.refresh(BOX.digest)
    with pytest.raises(VerificationFailed, match="its descriptor says 7"):
        await referrers.read(found)


async def test_what_is_neither_manifest_nor_index_is_told_so(scene: Scene, referrers: ReferrerFetcher) -> None:
    scene.fake.fault(lambda _: lying(LISTED.descriptor | {"mediaType": OCI_EMPTY}))
    (found,) = await referrers.refresh(BOX.digest)
    with pytest.raises(Unsupported, match="imgfs reads manifests and indexes"):
        await referrers.read(found)


async def test_an_index_may_refer_to_an_image(scene: Scene, referrers: ReferrerFetcher) -> None:
    document = json.loads(index([BOX]).document) | {"subject": BOX.descriptor}
    data = json.dumps(document).encode()
    digest = scene.fake.add_manifest(REPOSITORY, None, data, OCI_INDEX)
    found = {one.descriptor.digest: one for one in await referrers.refresh(BOX.digest)}
    await referrers.read(found[digest])
    assert await scene.content.read(digest) == data


async def test_every_registry_of_the_image_is_asked_and_a_gap_is_told(
    scene: Scene, referrers: ReferrerFetcher, mock_clock: MockClock
) -> None:
    with FakeRegistry() as other:
        BOX.add_to(other, "copy", "1")
        extra = referrer(BOX, SIGNATURE, b"another signature")
        extra.add_to(other, "copy")
        SIGNED.add_to(other, "copy")
        await scene.resolver.resolve(replace(scene.reference(), host=other.host, repository="copy"))
        found = {one.descriptor.digest: one for one in await referrers.refresh(BOX.digest)}
        assert set(found) == {LISTED.digest, SIGNED.digest, extra.digest}
        assert len(found[SIGNED.digest].sources) == 2
        scene.fake.fault(status(500), "referrers", times=None)
        scene.forget_failures()
        with pytest.raises(RemoteError, match="500"):
            await referrers.refresh(BOX.digest)
        assert len(await digests(referrers)) == 3
        assert scene.failures.get(f"referrers of {BOX.digest}")


async def test_one_that_is_not_listed_is_found_by_its_digest(
    scene: Scene, referrers: ReferrerFetcher, tmp_path: Path, mock_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(referrers.find, BOX.digest, LISTED.digest)
    assert (scene.fake.requests("manifest"), scene.fake.requests()) == (1, 1)
    found = await referrers.find(BOX.digest, LISTED.digest)
    said = found.descriptor
    assert (said.artifact_type, said.annotations, said.size) == (SBOM, {"made": "here"}, len(LISTED.document))
    assert await referrers.known(BOX.digest) == [found]
    await referrers.read(found)
    assert scene.fake.requests() == 1
    async with opened(tmp_path / "state", scene.fake, mock_clock) as again:
        assert await made(again).known(BOX.digest) == [found]
    await referrers.refresh(BOX.digest)
    assert sorted(await digests(referrers)) == sorted([LISTED.digest, SIGNED.digest])


async def test_one_of_another_image_is_refused_and_leaves_nothing(scene: Scene, referrers: ReferrerFetcher) -> None:
    other = referrer(LISTED, SBOM, b"of another")
    other.add_to(scene.fake, REPOSITORY)
    with pytest.raises(VerificationFailed, match=f"refers to {LISTED.digest}, expected {BOX.digest}"):
        await referrers.find(BOX.digest, other.digest)
    assert scene.fake.requests() == 1
    assert scene.failures.get(f"referrers of {BOX.digest}")
    assert other.digest not in scene.content
    assert other.digest not in scene.documents
    assert await referrers.known(BOX.digest) == []


async def test_one_that_is_stored_is_found_without_a_request(scene: Scene, referrers: ReferrerFetcher) -> None:
    await scene.content.add(LISTED.digest, LISTED.document)
    found = await referrers.find(BOX.digest, LISTED.digest)
    await referrers.read(found)
    assert (scene.fake.requests(), found.descriptor.size) == (0, len(LISTED.document))


async def test_one_that_no_registry_has_is_not_found(scene: Scene, referrers: ReferrerFetcher) -> None:
    with pytest.raises(NotFound):
        await referrers.find(BOX.digest, Digest.of(b"nothing"))
    assert scene.fake.requests() == 1
    with pytest.raises(NotFound, match="no registry is known to have"):
        await referrers.find(LISTED.digest, Digest.of(b"nothing"))


async def test_an_image_that_no_registry_has_has_none_to_ask(scene: Scene) -> None:
    with pytest.raises(NotFound, match="no registry is known to have"):
        await made(scene).refresh(BOX.digest)


async def test_referrers_are_found_of_a_platform_of_an_index_too(scene: Scene) -> None:
    arm = image([layer([File("a")])], platform=ARM64)
    await scene.resolved(index([BOX, arm]))
    referrer(arm, SBOM, b"of arm").add_to(scene.fake, REPOSITORY)
    assert len(await made(scene).refresh(arm.digest)) == 1
    assert await made(scene).refresh(BOX.digest) == []


async def test_a_forgotten_image_has_no_referrers(scene: Scene, referrers: ReferrerFetcher) -> None:
    await referrers.refresh(BOX.digest)
    assert await scene.catalog.referrers.of_any([BOX.digest]) == {LISTED.digest, SIGNED.digest}
    await scene.catalog.forget([BOX.digest], unless=lambda: False)
    assert await referrers.known(BOX.digest) == []
