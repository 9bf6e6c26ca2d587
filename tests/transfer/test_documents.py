"""Manifests and indexes: the choice of a platform, nesting, and wrong descriptors of other images' blobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from imgfs.errors import NoSpace, NotFound, TooLarge
from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX
from imgfs.oci.platform import Platform
from imgfs.testing.build import Image
from imgfs.testing.images import AMD64, ARM64, File, attestation, image, index, layer
from tests.transfer.scene import REPOSITORY, Scene, opened

BASE = layer([File("base", b"base" * 1000)])
TOP = layer([File("top", b"top" * 1000)], "zstd")
PLAIN = layer([File("plain", b"plain" * 1000)], "none")
BOX = image([BASE, TOP])
OTHER = image([BASE, PLAIN])


def described(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": Digest.of(data), "size": len(data)}


async def test_the_platform_is_chosen_from_the_index_and_attestations_never(scene: Scene) -> None:
    arm = image([TOP], platform=ARM64)
    made = index([attestation(BOX), arm, BOX])
    digest = await scene.resolved(made)
    assert (await scene.documents.platform_image(digest)).digest == BOX.digest
    assert (await scene.documents.platform_image(digest, ARM64)).digest == arm.digest
    assert (await scene.images.pull(digest, ARM64)).chain_id == TOP.diff_id
    with pytest.raises(NotFound, match="nothing for linux/s390x; it has linux/amd64, linux/arm64/v8"):
        await scene.documents.platform_image(digest, Platform("linux", "s390x"))


def nested(inner: Image, depth: int) -> list[bytes]:
    """Index documents around `inner`, the outermost last."""
    documents: list[bytes] = []
    child: dict[str, Any] = inner.descriptor
    for _ in range(depth):
        documents.append(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}).encode())
        child = described(documents[-1], OCI_INDEX)
    return documents


@pytest.mark.parametrize("depth", [1, INDEX_NESTING_MAX, INDEX_NESTING_MAX + 1])
async def test_indexes_are_followed_to_the_limit_and_not_one_further(scene: Scene, depth: int) -> None:
    BOX.add_to(scene.fake, REPOSITORY)
    documents = nested(BOX, depth)
    for number, document in enumerate(documents):
        scene.fake.add_manifest(REPOSITORY, "1" if number == depth - 1 else None, document, OCI_INDEX)
    digest = await scene.resolver.resolve(scene.reference())
    if depth > INDEX_NESTING_MAX:
        with pytest.raises(TooLarge, match="nested deeper than 4"):
            await scene.documents.platform_image(digest)
        assert await scene.documents.stored_platform_image(digest, AMD64) is None
        assert BOX.digest not in scene.content
    else:
        assert (await scene.documents.platform_image(digest)).digest == BOX.digest
        found = await scene.documents.stored_platform_image(digest, AMD64)
        assert found is not None
        assert found.digest == BOX.digest


async def test_stored_documents_are_never_asked_for(scene: Scene) -> None:
    await scene.resolver.register(str(scene.reference()), BOX.digest)
    assert await scene.documents.stored(BOX.digest) is None
    assert await scene.documents.stored_platform_image(BOX.digest, AMD64) is None
    assert BOX.digest not in scene.documents
    assert scene.fake.requests() == 0


async def test_parsed_documents_are_bounded_and_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgfs.transfer.documents._PARSED_KEPT", 1)
    first = await scene.resolved(BOX)
    await scene.resolved(OTHER, "2")
    assert first not in scene.documents
    assert await scene.documents.stored(first)


async def test_an_image_that_lies_about_anothers_manifest_harms_only_itself(
    scene: Scene, tmp_path: Path, mock_clock: MockClock
) -> None:
    lie = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described(BOX.document, OCI_INDEX)]}
    ).encode()
    scene.fake.add_manifest(REPOSITORY, "lie", lie, OCI_INDEX)
    await scene.resolver.resolve(scene.reference("lie"))
    digest = await scene.pulled(BOX)
    async with opened(tmp_path / "state", scene.fake, mock_clock) as again:
        assert await again.documents.stored_platform_image(digest, AMD64)
        await again.images.pull(digest)


async def test_an_image_that_lies_about_anothers_layer_harms_only_itself(scene: Scene) -> None:
    wrong = json.loads(image([BASE]).document)
    wrong["layers"][0]["size"] += 1
    scene.fake.add_manifest(REPOSITORY, "lie", json.dumps(wrong).encode())
    await scene.resolver.resolve(scene.reference("lie"))
    digest = await scene.pulled(BOX)
    snapshot = await scene.images.snapshot(digest)
    await scene.stored.discard(BASE.diff_id)
    await scene.views.get(snapshot)


async def test_document_that_was_stored_without_a_registry_tells_of_its_children(scene: Scene) -> None:
    made = index([BOX, image([TOP], platform=ARM64)])
    for data in (made.document, BOX.document, BOX.config):
        await scene.content.add(Digest.of(data), data)
    assert await scene.catalog.descriptor(BOX.digest) is None
    assert (await scene.documents.platform_image(made.digest)).digest == BOX.digest
    for one in (made, *made.images):
        found = await scene.catalog.descriptor(one.digest)
        assert found
        assert (found.size, found.media_type) == (len(one.document), one.media_type)
        assert await scene.resolver.is_known(one.digest)
    known = await scene.catalog.descriptor(BASE.digest)
    assert known
    assert known.size == len(BASE.blob)
    assert await scene.catalog.fetchable([made.digest, BOX.digest, BASE.digest]) == set()
    assert scene.fake.requests() == 0


async def test_document_can_be_read_where_nothing_can_be_recorded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise NoSpace("the disk is full")

    await scene.content.add(BOX.digest, BOX.document)
    monkeypatch.setattr(scene.catalog, "add", full)
    assert (await scene.documents.platform_image(BOX.digest)).digest == BOX.digest
