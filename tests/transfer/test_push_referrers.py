"""Pushing referrers: with their image, and to a registry without a referrers API."""

from __future__ import annotations

import json

import pytest

from imgfs.errors import RegistryFailed
from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.reference import Reference
from imgfs.testing.build import referrer
from imgfs.testing.faults import status
from imgfs.testing.reply import Reply
from tests.transfer.outward import TARGET, Outward, two_layers
from tests.transfer.scene import REPOSITORY


async def test_a_registry_that_sees_subjects_gets_no_list(outward: Outward) -> None:
    made = two_layers()
    sbom = referrer(made, "application/spdx+json", b"{}" * 40)
    await outward.push(await outward.stored(sbom), outward.name("sbom"))
    assert outward.target.tagged_names() == ["sbom"]


async def test_a_lost_answer_leaves_no_needless_list(outward: Outward) -> None:
    made = two_layers()
    sbom = referrer(made, "application/spdx+json", b"{}" * 40)

    def stored(reply: Reply) -> None:
        outward.target.add_manifest(TARGET, "sbom", sbom.document, sbom.media_type)

    outward.target.fault(stored, "PUT .*/manifests/sbom")
    await outward.push(await outward.stored(sbom), outward.name("sbom"))
    assert outward.target.tagged_names() == ["sbom"]


async def test_a_registry_that_does_not_gets_a_list_under_a_tag(outward: Outward) -> None:
    outward.target.tells_subject = outward.target.has_referrers = False
    made = two_layers()
    first = referrer(made, "application/spdx+json", b"{}" * 40, annotations={"by": "us"})
    second = referrer(made, "application/vnd.example.signature", b"sig")
    tag = f"sha256-{made.digest.hex}"
    await outward.push(await outward.stored(first), outward.name("sbom"))
    await outward.push(await outward.stored(second), Reference(outward.target.host, TARGET, digest=second.digest))
    found = outward.target.manifest(TARGET, tag)
    assert found is not None
    assert json.loads(found[0]) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {
                **first.descriptor,
                "artifactType": "application/spdx+json",
                "annotations": {"by": "us"},
            },
            {**second.descriptor, "artifactType": "application/vnd.example.signature"},
        ],
    }
    outward.target.log.clear()
    await outward.push(second.digest, Reference(outward.target.host, TARGET, digest=second.digest))
    assert outward.target.sent() == 0
    listed = await outward.scene.client.referrers(outward.target.host, TARGET, made.digest)
    assert [one.digest for one in listed] == [first.digest, second.digest]


async def test_a_list_that_was_left_undone_is_done_by_the_next_push(outward: Outward) -> None:
    outward.target.tells_subject = outward.target.has_referrers = False
    made = two_layers()
    sbom = referrer(made, "application/spdx+json", b"{}")
    digest = await outward.stored(sbom)
    tag = f"sha256-{made.digest.hex}"
    outward.target.fault(status(500), f"PUT .*/manifests/{tag}", times=3)
    with pytest.raises(RegistryFailed):
        await outward.push(digest)
    await outward.push(digest)
    assert outward.target.manifest(TARGET, tag) is not None


async def test_a_tag_that_is_no_list_is_left_alone(outward: Outward) -> None:
    outward.target.tells_subject = outward.target.has_referrers = False
    made = two_layers()
    tag = f"sha256-{made.digest.hex}"
    outward.target.add_manifest(TARGET, tag, made.document)
    with pytest.raises(Exception, match="is no index"):
        await outward.push(await outward.stored(referrer(made, "application/spdx+json", b"{}")))
    assert outward.target.manifest(TARGET, tag) == (made.document, made.media_type)


async def test_referrers_go_along_when_they_are_wanted(outward: Outward) -> None:
    made = two_layers()
    sbom = referrer(made, "application/spdx+json", b"{}" * 40)
    signature = referrer(sbom, "application/vnd.example.signature", b"sig")
    digest = await outward.scene.pulled(made)
    for one in (sbom, signature):
        one.add_to(outward.source, REPOSITORY)
    await outward.referrers.refresh(digest)
    for one in await outward.referrers.known(digest):
        await outward.referrers.read(one)
    await outward.referrers.refresh(sbom.digest)
    await outward.push(digest)
    assert outward.target.manifest(TARGET, sbom.digest) is None
    await outward.push(digest, referrers=True)
    for one in (sbom, signature):
        assert outward.target.manifest(TARGET, one.digest) == (one.document, one.media_type)
        assert outward.target.blob(TARGET, one.layers[0].digest) == one.layers[0].blob
