"""Metadata images: built from layers, checked before use, and built again if they are damaged."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest

from imgfs.check.content import check_view
from imgfs.erofs.superblock import _digest
from imgfs.errors import StorageFailed
from imgfs.oci.digest import Digest
from imgfs.rootfs.metadata import MetadataImages
from tests.rootfs.scene import BASE, TOP, Scene


async def test_an_image_is_found_once_it_is_made(scene: Scene) -> None:
    view = await scene.view(BASE, TOP)
    chain_id = view.snapshot.chain_id
    assert await scene.images.find(chain_id) is None
    path = await scene.images.make(view)
    assert path == scene.images.path(chain_id) == scene.state / "views" / f"{chain_id.hex}.erofs"
    assert await scene.images.find(chain_id) == path
    assert await MetadataImages(scene.state).find(chain_id) == path
    assert await scene.images.find(Digest.of(b"another")) is None


async def test_builds_of_an_image_are_identical(scene: Scene) -> None:
    view = await scene.view(BASE, TOP)
    path = await scene.images.make(view)
    first = path.read_bytes()
    scene.start()
    assert (await scene.images.make(await scene.views.get(view.snapshot))).read_bytes() == first


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
async def test_a_torn_image_is_deleted_and_not_found(
    scene: Scene, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    view = await scene.view(BASE)
    path = await scene.images.make(view)
    whole = path.read_bytes()
    tear(path, damage)
    images = MetadataImages(scene.state)
    with caplog.at_level(logging.WARNING):
        assert await images.find(view.snapshot.chain_id) is None
    assert "metadata image is built again" in caplog.text
    assert not path.exists()
    assert (await images.make(view)).read_bytes() == whole
    assert await images.find(view.snapshot.chain_id) == path


async def test_an_image_of_an_older_version_is_built_again_and_is_not_called_torn(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = await scene.view(BASE)
    with monkeypatch.context() as patch:
        patch.setattr("imgfs.erofs.superblock._digest", partial(_digest, edition=b"imgfs erofs 1"))
        path = await scene.images.make(view)
    assert check_view(path, "views/it", lambda _: None) is None
    with caplog.at_level(logging.WARNING):
        assert await MetadataImages(scene.state).find(view.snapshot.chain_id) is None
    assert [vars(record)["reason"] for record in caplog.records] == ["of an older version"]
    assert not path.exists()


def tear(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes({"cut": data[:-512], "empty": b"", "flipped": data}[how])


async def test_all_bytes_are_checked_once_per_daemon(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    view = await scene.view(BASE)
    await scene.images.make(view)
    images = MetadataImages(scene.state)
    assert await images.find(view.snapshot.chain_id)
    monkeypatch.setattr("imgfs.rootfs.metadata.is_whole", pytest.fail)
    assert await images.find(view.snapshot.chain_id)


async def test_an_image_removed_from_under_the_daemon_is_not_found(scene: Scene) -> None:
    view = await scene.view(BASE)
    path = await scene.images.make(view)
    path.unlink()
    assert await scene.images.find(view.snapshot.chain_id) is None
    await scene.images.remove(view.snapshot.chain_id)


async def test_a_removed_image_is_made_again(scene: Scene) -> None:
    view = await scene.view(BASE)
    path = await scene.images.make(view)
    await scene.images.remove(view.snapshot.chain_id)
    assert not path.exists()
    assert await scene.images.make(view) == path


async def test_a_failed_write_is_raised_and_leaves_no_file(scene: Scene) -> None:
    view = await scene.view(BASE)
    path = scene.images.path(view.snapshot.chain_id)
    path.mkdir()
    assert await scene.images.find(view.snapshot.chain_id) is None
    with pytest.raises(StorageFailed, match=view.snapshot.chain_id.hex):
        await scene.images.make(view)
    assert list(path.parent.iterdir()) == [path]


async def test_a_start_sweeps_what_a_crash_left(scene: Scene) -> None:
    left = scene.state / "views/.tmp-left"
    left.write_bytes(b"half")
    MetadataImages(scene.state)
    assert not left.exists()
