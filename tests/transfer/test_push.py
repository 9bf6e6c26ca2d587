"""Pushes: which parts are sent, in which order, and which are not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.aio.flight import GRACE
from imgfs.database.frozen import FrozenDatabase
from imgfs.errors import Invalid, NotFound, RegistryFailed, Unreachable
from imgfs.images import catalog
from imgfs.images.catalog import Catalog
from imgfs.leases.resource import content
from imgfs.oci.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference, Source
from imgfs.registry.limits import Limits
from imgfs.testing.build import AMD64, ARM64, BuiltIndex, Image, image, index, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import close, status
from imgfs.testing.reply import Reply
from imgfs.testing.uploads import PushRegistry
from imgfs.transfer.push.pushes import PushRequest
from tests.transfer.outward import TARGET, Outward, two_layers
from tests.transfer.scene import REPOSITORY, opened

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


async def test_an_image_that_was_pulled_is_pushed_to_another_registry(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    report = await outward.push(digest)
    outward.assert_there(made)
    assert (report.digest, report.mounted, report.present) == (digest, 0, 0)
    assert report.sent == len(made.document) + sum(map(len, made.blobs.values())) == outward.target.sent()
    assert [part.outcome for part in report.parts] == ["sent"] * 4


async def test_the_manifest_goes_last(outward: Outward) -> None:
    await outward.push(await outward.scene.pulled(two_layers()))
    sent = [one for one in outward.target.asked() if not one.startswith("HEAD")]
    assert sorted(sent[:-1]) == [*["POST upload"] * 3, *["PUT upload"] * 3]
    assert sent[-1] == "PUT manifests"


async def test_a_second_push_asks_once_and_sends_nothing(outward: Outward) -> None:
    digest = await outward.scene.pulled(two_layers())
    await outward.push(digest)
    outward.target.log.clear()
    report = await outward.push(digest)
    assert outward.target.asked() == ["HEAD manifests"]
    assert (report.sent, [part.outcome for part in report.parts]) == (0, ["present"])


async def test_another_tag_costs_the_manifest_alone(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    await outward.push(digest)
    outward.target.log.clear()
    report = await outward.push(digest, outward.name("2"))
    assert outward.target.asked() == ["HEAD manifests", "HEAD manifests", "PUT manifests"]
    assert report.sent == len(made.document)
    outward.assert_there(made, "2")


async def test_blobs_that_are_there_are_not_sent(outward: Outward) -> None:
    first, second = two_layers(), image([*two_layers().layers, layer([File("more")])])
    await outward.push(await outward.scene.pulled(first, "1"))
    digest = await outward.scene.pulled(second, "2")
    outward.target.log.clear()
    report = await outward.push(digest, outward.name("2"))
    assert sorted(outward.target.asked("upload")) == ["POST upload", "POST upload", "PUT upload", "PUT upload"]
    assert report.present == sum(len(one.blob) for one in first.layers)


async def test_within_a_registry_blobs_are_taken_over_and_not_even_fetched(within: Outward) -> None:
    made = two_layers()
    digest = await within.scene.resolved(made)
    within.source.log.clear()
    report = await within.push(digest)
    within.assert_there(made)
    assert report.mounted == sum(map(len, made.blobs.values()))
    assert {part.source for part in report.parts if part.kind != "manifest"} == {REPOSITORY}
    assert "GET blobs" not in within.source.asked()
    assert within.source.sent() == len(made.document)


async def test_a_registry_that_mounts_nothing_gets_the_blobs(within: Outward) -> None:
    within.source.mounts = False
    made = two_layers()
    report = await within.push(await within.scene.resolved(made))
    within.assert_there(made)
    assert report.mounted == 0
    assert within.source.asked("upload").count("POST upload") == 3


async def test_a_blob_that_cannot_be_fetched_leaves_no_upload_open_that_a_refused_mount_has_opened(
    within: Outward,
) -> None:
    within.source.mounts = False
    digest = await within.scene.resolved(image([]))
    within.source.fault(status(500), "GET .*/blobs/", times=None)
    with pytest.raises(RegistryFailed):
        await within.push(digest)
    assert within.source.asked("upload") == ["POST upload", "DELETE upload"]
    assert within.source.sessions == {}


async def test_an_image_without_a_registry_is_pushed_and_can_be_had_from_there(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.stored(made)
    place = Source(outward.target.host, TARGET)
    assert await outward.scene.catalog.sources(made.layers[0].digest) == []
    await outward.push(digest)
    outward.assert_there(made)
    assert outward.source.log == []
    for one in (digest, *made.blobs):
        assert await outward.scene.catalog.sources(one) == [place]
    await outward.scene.content.delete(made.layers[0].digest)
    await outward.scene.blobs.ensure(
        Descriptor(made.layers[0].digest, len(made.layers[0].blob), made.layers[0].media_type(docker=False))
    )


async def test_a_place_that_cannot_be_written_down_costs_the_push_nothing(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.stored(made)
    frozen = FrozenDatabase(outward.scene.root / "imgfs.db", [catalog.SCHEMA])
    try:
        await outward.pushes_with(Catalog(frozen)).push(PushRequest(digest, outward.name(), AMD64))
    finally:
        frozen.close()
    outward.assert_there(made)
    assert await outward.scene.catalog.sources(made.layers[0].digest) == []


async def test_docker_s_media_types_stay(outward: Outward) -> None:
    made = index([two_layers("a", docker=True), image([layer([File("b")])], platform=ARM64, docker=True)], docker=True)
    await outward.push(await outward.scene.pulled(made), all_platforms=True)
    outward.assert_there(made)
    types = [one.headers["content-type"] for one in outward.target.log if "/manifests/" in one.path and one.body]
    assert types == [DOCKER_MANIFEST, DOCKER_MANIFEST, DOCKER_INDEX]


async def test_of_an_index_one_platform_gets_the_name(outward: Outward) -> None:
    ours, theirs = two_layers("ours"), image([layer([File("theirs")])], platform=ARM64)
    digest = await outward.scene.pulled(index([theirs, ours]))
    report = await outward.push(digest)
    outward.assert_there(ours)
    assert report.digest == ours.digest
    assert outward.target.manifest(TARGET, theirs.digest) is None


async def test_an_index_goes_after_its_manifests_and_missing_platforms_are_fetched(outward: Outward) -> None:
    made = index([two_layers(f"p{n}") for n in range(10)] + [image([layer([File("arm")])], platform=ARM64)])
    digest = await outward.scene.pulled(made)
    report = await outward.push(digest, all_platforms=True)
    outward.assert_there(made)
    assert [one.kind for one in report.parts][-1] == "index"
    puts = [
        one.path.rpartition("/")[2] for one in outward.target.log if one.method == "PUT" and "/manifests/" in one.path
    ]
    assert puts[-1] == "1"
    assert sorted(puts[:-1]) == sorted(one.digest for one in made.images)


async def test_a_platform_that_is_there_and_nowhere_else_is_no_obstacle(outward: Outward) -> None:
    ours, theirs = two_layers("ours"), image([layer([File("arm")])], platform=ARM64)
    made = index([ours, theirs])
    theirs.add_to(outward.target, TARGET)
    await outward.stored(ours)
    await outward.scene.content.add(made.digest, made.document)
    report = await outward.push(made.digest, all_platforms=True)
    outward.assert_there(made)
    assert {part.digest: part.outcome for part in report.parts}[theirs.digest] == "present"


async def test_an_index_in_an_index_is_pushed_before_it(outward: Outward) -> None:
    inner = index([two_layers()])
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner.descriptor, inner.images[0].descriptor]}
    outer = BuiltIndex(OCI_INDEX, json.dumps(document).encode(), None, ())
    inner.add_to(outward.source, REPOSITORY)
    digest = await outward.scene.resolved(outer)
    await outward.push(digest, all_platforms=True)
    assert outward.target.manifest(TARGET, "1") == (outer.document, OCI_INDEX)
    assert outward.target.manifest(TARGET, inner.digest) == (inner.document, OCI_INDEX)
    puts = [one for one in outward.target.asked() if one == "PUT manifests"]
    assert len(puts) == 3


async def test_foreign_layers_are_left_out_and_told(outward: Outward) -> None:
    plain = two_layers(docker=True)
    document = json.loads(plain.document)
    document["layers"][0]["mediaType"] = FOREIGN
    made = Image(DOCKER_MANIFEST, json.dumps(document).encode(), AMD64, plain.config, plain.layers)
    digest = await outward.stored(made)
    report = await outward.push(digest)
    assert outward.target.manifest(TARGET, "1") == (made.document, DOCKER_MANIFEST)
    assert outward.target.blob(TARGET, made.layers[0].digest) is None
    assert [part.digest for part in report.parts if part.outcome == "foreign"] == [made.layers[0].digest]


async def test_a_name_by_digest_must_be_the_image_s(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    own = Reference(outward.target.host, TARGET, digest=digest)
    with pytest.raises(Invalid, match="is not; name a tag"):
        await outward.push(digest, Reference(outward.target.host, TARGET, digest=Digest.of(b"else")))
    assert outward.target.log == []
    await outward.push(digest, own)
    assert outward.target.manifest(TARGET, digest) == (made.document, made.media_type)


async def test_of_a_complete_image_whose_registry_is_gone_it_is_told_which_layers_are_wanted(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    await outward.scene.blobs.ensure(
        Descriptor(made.layers[0].digest, len(made.layers[0].blob), made.layers[0].media_type(docker=False))
    )
    outward.source.fault(close(), "", times=None)
    with pytest.raises(Unreachable) as caught:
        await outward.push(digest)
    told = caught.value.message
    assert f"are {made.layers[1].digest}: {outward.source.host}/{REPOSITORY}" in told
    assert made.layers[0].digest not in told
    assert "hosts.toml" in told
    assert outward.target.manifest(TARGET, "1") is None


async def test_what_is_nowhere_is_told(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.stored(made)
    await outward.scene.content.delete(made.layers[1].digest)
    with pytest.raises(NotFound, match=made.layers[1].digest):
        await outward.push(digest)
    assert outward.target.manifest(TARGET, "1") is None
    assert made.layers[1].digest in (outward.pushes.failure(PushRequest(digest, outward.name(), AMD64)) or "")


async def test_a_registry_that_takes_none_is_told(outward: Outward) -> None:
    outward.target.takes_pushes = False
    with pytest.raises(RegistryFailed, match="405"):
        await outward.push(await outward.scene.pulled(two_layers()))


async def test_a_blob_that_is_damaged_here_is_fetched_anew_and_sent_again(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    await outward.scene.blobs.ensure(
        Descriptor(made.layers[0].digest, len(made.layers[0].blob), made.layers[0].media_type(docker=False))
    )
    path = outward.scene.content.path(made.layers[0].digest)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    await outward.push(digest)
    outward.assert_there(made)
    assert list(path.parent.glob("*.damaged*"))


async def test_wrong_bytes_on_the_way_are_sent_once_more(outward: Outward) -> None:
    wrong = status(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
    outward.target.fault(wrong, "PUT .*uploads/")
    made = two_layers()
    await outward.push(await outward.scene.pulled(made))
    outward.assert_there(made)
    assert not list(outward.scene.root.rglob("*.damaged*"))


async def test_a_manifest_that_contradicts_its_blobs_is_not_pushed(outward: Outward) -> None:
    plain = two_layers()
    document = json.loads(plain.document)
    document["config"]["size"] += 1
    digest = await outward.stored(
        Image(plain.media_type, json.dumps(document).encode(), AMD64, plain.config, plain.layers)
    )
    with pytest.raises(Exception, match="contradicts itself"):
        await outward.push(digest)


async def test_two_pushes_at_once_send_each_blob_once(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    async with trio.open_nursery() as nursery:
        for tag in ("1", "1", "2"):
            nursery.start_soon(outward.push, digest, outward.name(tag))
    outward.assert_there(made, "1")
    outward.assert_there(made, "2")
    assert outward.target.asked("upload").count("PUT upload") == 3
    assert len(outward.sending()) == 0


async def test_a_push_that_nobody_waits_for_ends_and_goes_on_in_the_next(
    outward: Outward, mock_clock: MockClock
) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)
    outward.target.fault(lambda reply: Reply(201, hold=-1), "PUT .*uploads/", times=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outward.push, digest)
        await trio.to_thread.run_sync(outward.target.valve.wait_arrival, abandon_on_cancel=True)
        told = outward.pushes.progress(PushRequest(digest, outward.name(), AMD64))
        assert told is not None
        assert told.total == sum(map(len, made.blobs.values()))
        assert told.running
        assert {one.place for one in outward.sending()} == {f"{outward.target.host}/{TARGET}"}
        assert {content(one) for one in (digest, *made.blobs)} <= set(outward.pins)
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked(0.01)
    assert len(outward.pins) == 0
    assert outward.pushes.progress(PushRequest(digest, outward.name(), AMD64)) is None
    assert outward.sending(), "what is on its way has a moment to arrive"
    mock_clock.jump(GRACE)
    await wait_all_tasks_blocked(0.01)
    assert not outward.sending()
    outward.target.reset()
    await outward.push(digest)
    outward.assert_there(made)
    assert "GET upload" in outward.target.asked("upload")


async def test_a_push_that_nobody_waits_for_ends_with_its_part_and_no_byte_goes_twice(
    tmp_path: Path, source: PushRegistry, target: PushRegistry, mock_clock: MockClock
) -> None:
    async with opened(tmp_path / "state", source, mock_clock, Limits(chunk=4096)) as scene:
        outward = Outward(scene, source, target)
        made = image([layer([File("x", random.Random(5).randbytes(10000))])])
        digest = await scene.pulled(made)
        target.fault(lambda reply: replace(reply, hold=-1), "PATCH")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outward.push, digest)
            await trio.to_thread.run_sync(target.valve.wait_arrival, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked(0.01)
        assert outward.sending(), "a part that is on its way is not cut"
        target.release()
        with trio.fail_after(60):
            while outward.sending():
                await wait_all_tasks_blocked(0.01)
        assert target.asked("upload").count("PATCH upload") == 1
        await outward.push(digest)
        outward.assert_there(made)
        assert target.asked("upload").count("GET upload") == 1
        parts = [len(one.body) for one in target.log if one.method == "PATCH"]
        assert len(parts) > 2
        assert sum(parts) == len(made.layers[0].blob)


async def test_a_tag_that_nobody_confirmed_is_looked_at_before_it_is_set_again(outward: Outward) -> None:
    made = two_layers()
    digest = await outward.scene.pulled(made)

    def stored(reply: Reply) -> None:
        outward.target.add_manifest(TARGET, "1", made.document, made.media_type)

    outward.target.fault(stored, "PUT .*/manifests/1")
    await outward.push(digest)
    assert [one for one in outward.target.asked("manifests") if one == "PUT manifests"] == ["PUT manifests"]
    outward.assert_there(made)
