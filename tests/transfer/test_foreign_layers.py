"""Foreign layers: never requested, never a failure of another image, and a normal layer once stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from trio.testing import MockClock

from imgfs.errors import Unsupported
from imgfs.oci.descriptor import Descriptor
from imgfs.testing.build import Image
from imgfs.testing.images import File, image, layer
from tests.transfer.scene import Scene

BASE = layer([File("base", b"base" * 100)])
TOP = layer([File("top", b"top" * 100)])
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


def with_foreign_base(media_type: str) -> Image:
    made = image([BASE, TOP])
    document = json.loads(made.document)
    document["layers"][0] |= {"mediaType": media_type, "urls": ["http://169.254.169.254/layer"]}
    return replace(made, document=json.dumps(document).encode())


@pytest.mark.parametrize("media_type", [FOREIGN, NONDISTRIBUTABLE])
async def test_a_foreign_layer_is_refused_by_name_until_it_is_here(
    scene: Scene, mock_clock: MockClock, media_type: str
) -> None:
    digest = await scene.resolved(with_foreign_base(media_type))
    for _ in range(2):
        with pytest.raises(Unsupported, match=f"layer {BASE.digest}: is foreign .*follows no urls"):
            await scene.images.pull(digest)
    with pytest.raises(Unsupported, match="is foreign"):
        await scene.blobs.ensure(Descriptor(BASE.digest, len(BASE.blob), media_type))
    assert not [one for one in scene.fake.log if BASE.digest in one.path]
    assert "is foreign" in (scene.failures.get(digest) or "")
    await scene.content.add(BASE.digest, BASE.blob)
    scene.forget_failures()
    view = await scene.views.get(await scene.images.pull(digest))
    assert set(view.tree.root.children or ()) == {b"base", b"top"}
    assert BASE.digest in scene.content


async def test_what_is_here_of_a_foreign_layer_is_never_taken_for_fetchable(scene: Scene) -> None:
    await scene.resolved(with_foreign_base(FOREIGN))
    assert await scene.catalog.fetchable([BASE.digest, TOP.digest]) == {TOP.digest}
    assert await scene.catalog.sources(BASE.digest) == []
    assert (await scene.catalog.descriptor(BASE.digest)) == Descriptor(BASE.digest, len(BASE.blob), FOREIGN)


async def test_an_image_that_calls_a_layer_foreign_harms_no_other(scene: Scene) -> None:
    await scene.resolved(with_foreign_base(FOREIGN))
    await scene.images.pull(await scene.resolved(image([BASE]), "2"))
