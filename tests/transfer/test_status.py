"""The status of an image in each of its states, without requests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio

from imgfs.errors import ImgfsError
from imgfs.oci.descriptor import OCI_CONFIG, OCI_LAYER, Descriptor
from imgfs.oci.digest import Digest
from imgfs.testing.faults import stall, status
from imgfs.testing.images import ARM64, File, image, index, layer
from imgfs.transfer.image_status import ImageStatus, render_status
from tests.transfer.scene import Scene

LAYER = layer([File("f", b"content" * 1000)])
BOX = image([LAYER])
CONFIG = Descriptor(Digest.of(BOX.config), len(BOX.config), OCI_CONFIG)


def states(found: ImageStatus) -> dict[str, str]:
    return {part.kind: part.state for part in found.parts}


async def test_an_image_nobody_has_seen_is_a_name_and_nothing_more(scene: Scene) -> None:
    await scene.resolver.register(str(scene.reference()), BOX.digest)
    found = await scene.status.image(BOX.digest)
    assert (found.names, found.complete, found.parts, found.error) == ([str(scene.reference())], False, [], None)
    assert scene.fake.requests() == 0


async def test_a_manifest_that_is_only_known_is_absent(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    await scene.content.delete(digest)
    scene.documents._parsed.clear()
    found = await scene.status.image(digest)
    assert (states(found), found.parts[0].size, found.parts[0].offset) == (
        {"manifest": "absent"},
        len(BOX.document),
        0,
    )


async def test_a_resolved_image_lacks_config_and_layers(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.reset()
    found = await scene.status.image(digest)
    assert states(found) == {"manifest": "local", "config": "absent", "layer": "absent"}
    assert (found.complete, found.lazy, found.platform) == (False, False, "linux/amd64")
    assert [part.offset for part in found.parts] == [len(BOX.document), 0, 0]
    assert scene.fake.requests() == 0


async def test_a_complete_image_is_local_in_all_its_parts(scene: Scene) -> None:
    found = await scene.status.image(await scene.pulled(BOX))
    assert set(states(found).values()) == {"local"}
    assert found.complete
    assert all(part.offset == part.size for part in found.parts)
    assert found.parts[2].diff_id == LAYER.diff_id
    assert "complete  yes" in render_status(found)


async def test_a_layer_that_was_stored_and_not_unpacked_is_local(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    blob = Descriptor(LAYER.digest, len(LAYER.blob), OCI_LAYER)
    for descriptor in (CONFIG, blob):
        await scene.blobs.ensure(descriptor)
    found = await scene.status.image(digest)
    assert (found.complete, set(states(found).values())) == (True, {"local"})
    asked = scene.fake.requests()
    await scene.images.pull(digest)
    assert scene.fake.requests() == asked


async def test_what_is_on_its_way_says_how_far_it_is_and_from_where(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(stall(10), CONFIG.digest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.blobs.ensure, CONFIG)
        await scene.stalled()
        part = (await scene.status.image(digest)).parts[1]
        assert (part.state, part.offset, part.size) == ("loading", 10, len(BOX.config))
        assert part.where == str(scene.reference()).removesuffix(":1")
        scene.fake.release()
    assert (await scene.status.image(digest)).parts[1].state == "local"


async def test_what_failed_says_why_until_it_goes_well(scene: Scene, mock_clock: object) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(status(403), LAYER.digest, times=None)
    with pytest.raises(ImgfsError) as caught:
        await scene.images.pull(digest)
    found = await scene.status.image(digest)
    assert (states(found)["layer"], found.parts[2].error, found.error) == (
        "failed",
        caught.value.message,
        caught.value.message,
    )
    assert caught.value.message in render_status(found)
    scene.fake.reset()
    scene.forget_failures()
    await scene.images.pull(digest)
    found = await scene.status.image(digest)
    assert (found.complete, found.error, [part.error for part in found.parts]) == (True, None, [None] * 3)


@pytest.mark.parametrize(
    "config",
    [b'{"rootfs":{"type":"layers","diff_ids":[]}}', b"{", json.dumps({"rootfs": {"diff_ids": [LAYER.diff_id] * 9}})],
    ids=["few", "cut", "many"],
)
async def test_a_config_that_does_not_fit_never_makes_an_image_complete(scene: Scene, config: bytes | str) -> None:
    data = config if isinstance(config, bytes) else config.encode()
    described = {"mediaType": OCI_CONFIG, "digest": Digest.of(data), "size": len(data)}
    document = json.dumps(json.loads(BOX.document) | {"config": described}).encode()
    digest = await scene.resolved(replace(BOX, config=data, document=document))
    await scene.blobs.ensure(Descriptor(Digest.of(data), len(data), OCI_CONFIG))
    found = await scene.status.image(digest)
    assert [part.kind for part in found.parts] == ["manifest", "config", "layer"]
    assert (found.complete, found.parts[2].state) == (False, "absent")


async def test_an_index_is_as_complete_as_its_image_for_this_platform(scene: Scene) -> None:
    other = image([layer([File("g")])], platform=ARM64)
    digest = await scene.pulled(index([other, BOX]))
    found = await scene.status.image(digest)
    assert found.complete
    assert found.parts[0].digest == BOX.digest


async def test_an_index_without_this_platform_says_so(scene: Scene) -> None:
    found = await scene.status.image(await scene.resolved(index([image([], platform=ARM64)])))
    assert (found.parts, found.complete) == ([], False)
    assert "nothing for linux/amd64" in render_status(found)


async def test_people_get_a_line_a_part(scene: Scene) -> None:
    found = await scene.status.image(await scene.resolved(BOX))
    lines = render_status(found).splitlines()
    assert [line.split()[0] for line in lines] == [
        "image",
        "name",
        "platform",
        "complete",
        "lazy",
        "manifest",
        "config",
        "layer",
    ]
    total = len(BOX.document) + len(BOX.config) + len(LAYER.blob)
    assert f"{len(BOX.document)} of {total} bytes are stored" in lines[3]
