"""Pulling images: each byte is fetched once for all callers, and only verified bytes are stored."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.disk.durable import temporary_name
from imgfs.errors import (
    Cancelled,
    ImgfsError,
    Malformed,
    NoSpace,
    NotFound,
    StorageFailed,
    TooLarge,
    Unsupported,
    VerificationFailed,
)
from imgfs.layers.layer import Layer
from imgfs.layers.store import LayerStore
from imgfs.oci.descriptor import DOCKER_CONFIG, OCI_CONFIG, OCI_LAYER, Descriptor
from imgfs.oci.digest import Digest, chain_id
from imgfs.oci.manifest import CONFIG_SIZE_MAX
from imgfs.oci.reference import Source
from imgfs.testing.build import Image
from imgfs.testing.faults import cut_at, stall, status, wrong_bytes
from imgfs.testing.images import AMD64, ARM64, File, image, index, layer
from imgfs.testing.registry import FakeRegistry
from imgfs.transfer.blobs import known_descriptor
from imgfs.transfer.copies import COPIED_MIN
from imgfs.transfer.layer_sync import SYNC_DELAY
from imgfs.transfer.layers import GATHERED_A_HOST, PASSES_A_HOST
from tests.transfer.scene import REPOSITORY, Scene, opened

BASE = layer([File("base", b"base" * 1000)])
TOP = layer([File("top", b"top" * 1000)], "zstd")
PLAIN = layer([File("plain", b"plain" * 1000)], "none")
BOX = image([BASE, TOP])
OTHER = image([BASE, PLAIN])


async def test_a_pull_gets_every_blob_once_and_a_complete_image_costs_nothing(
    scene: Scene, tmp_path: Path, mock_clock: MockClock
) -> None:
    digest = await scene.resolved(BOX)
    snapshot = await scene.images.pull(digest)
    assert snapshot.chain_id == chain_id(BOX.diff_ids)
    assert scene.fake.requests("blob") == 3
    scene.fake.reset()
    assert await scene.images.pull(digest) == snapshot
    assert scene.images.local_snapshot(digest, AMD64) == snapshot
    view = await scene.views.get(snapshot)
    assert set(view.tree.root.children or ()) == {b"base", b"top"}
    async with opened(tmp_path / "state", scene.fake, mock_clock) as again:
        assert await again.images.pull(digest) == snapshot
        assert await again.views.get(snapshot)
    assert scene.fake.requests() == 0
    assert scene.temporary() == []


async def test_nothing_is_local_before_it_was_asked_for_and_after_a_layer_went(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    assert scene.images.local_snapshot(digest, AMD64) is None
    await scene.images.pull(digest)
    assert scene.images.local_snapshot(digest, ARM64) is None
    await scene.stored.discard(TOP.diff_id)
    assert scene.images.local_snapshot(digest, AMD64) is None


async def test_a_discarded_layer_is_fetched_again_by_a_view_and_alone(scene: Scene) -> None:
    digest = await scene.pulled(BOX)
    await scene.stored.discard(TOP.diff_id)
    await scene.views.get(await scene.images.snapshot(digest))
    assert [one.path for one in scene.fake.log] == [f"/v2/{REPOSITORY}/blobs/{TOP.digest}"]


@pytest.mark.parametrize("gone", ["index", "manifest", "config"])
async def test_a_document_that_somebody_removed_is_brought_again_by_the_next_pull(scene: Scene, gone: str) -> None:
    made = index([BOX, image([TOP], platform=ARM64)])
    digest = await scene.pulled(made)
    removed = {"index": digest, "manifest": BOX.digest, "config": Digest.of(BOX.config)}[gone]
    await scene.content.remove(removed)
    assert not (await scene.status.image(digest)).complete
    assert await scene.images.pull(digest)
    assert removed in scene.content
    assert (await scene.status.image(digest)).complete
    assert scene.fake.requests() == 1


def hits(scene: Scene) -> float:
    """Return the metric that counts requests for stored layers."""
    asked = next(one for one in scene.transfers.families() if one.name == "imgfs_content_asked_total")
    return next(one.value for one in asked.samples if one.labels == (("kind", "layer"), ("outcome", "hit")))


async def test_a_layer_that_is_here_is_counted_once_a_pull(scene: Scene) -> None:
    digest = await scene.pulled(BOX)
    before = hits(scene)
    await scene.images.pull(digest)
    await scene.images.pull(digest, again=True)
    assert hits(scene) - before == len(BOX.layers)


async def test_fifty_who_want_an_image_cause_one_request_a_blob(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(stall(10), "blobs", times=3)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(scene.images.pull, digest)
        await scene.stalled()
        scene.fake.release(3)
    assert scene.fake.requests("blob") == 3


async def test_a_layer_of_two_images_is_fetched_once(scene: Scene) -> None:
    digests = [await scene.resolved(BOX), await scene.resolved(OTHER, "2", "team/other")]
    async with trio.open_nursery() as nursery:
        for digest in digests:
            nursery.start_soon(scene.images.pull, digest)
    assert len([one for one in scene.fake.log if BASE.digest in one.path]) == 1


async def test_a_layer_that_is_here_but_not_yet_durable_is_not_fetched_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = trio.Event()
    prove = scene.catalog.prove_diff_id

    async def slow(blob: Descriptor, diff_id: Digest) -> None:
        await gate.wait()
        await prove(blob, diff_id)

    monkeypatch.setattr(scene.catalog, "prove_diff_id", slow)
    await scene.images.snapshot(await scene.resolved(BOX))
    await scene.images.snapshot(await scene.resolved(OTHER, "2"))
    assert len([one for one in scene.fake.log if BASE.digest in one.path]) == 1
    gate.set()


async def test_the_same_tar_in_two_compressions_is_one_layer(scene: Scene) -> None:
    await scene.pulled(image([BASE]))
    await scene.pulled(image([layer(BASE.tar, "zstd")]), "2")
    assert [one.diff_id for one in scene.stored] == [BASE.diff_id]


async def test_a_blob_that_was_read_as_content_is_unpacked_without_a_request(scene: Scene) -> None:
    digest = await scene.resolved(image([BASE]))
    await scene.blobs.ensure(Descriptor(BASE.digest, len(BASE.blob), f"{OCI_LAYER}+gzip"))
    await scene.images.pull(digest)
    assert len([one for one in scene.fake.log if BASE.digest in one.path]) == 1


async def test_a_blob_that_is_being_read_as_content_is_unpacked_from_there(scene: Scene) -> None:
    made = image([layer([File("f")])])
    digest = await scene.resolved(made)
    blob = made.layers[0].blob
    descriptor = await known_descriptor(scene.catalog, Digest.of(blob))
    scene.fake.fault(stall(len(blob) // 2), f"blobs/{descriptor.digest}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.blobs.ensure, descriptor)
        await scene.stalled()
        nursery.start_soon(scene.images.pull, digest)
        await wait_all_tasks_blocked(0.01)
        scene.fake.release()
    assert len([one for one in scene.fake.log if descriptor.digest in one.path]) == 1
    assert made.diff_ids[0] in scene.stored


async def test_a_blob_that_another_registry_is_asked_for_too_holds_no_image_up(scene: Scene) -> None:
    made = image([layer([File("f")])])
    digest = await scene.resolved(made)
    descriptor = await known_descriptor(scene.catalog, Digest.of(made.layers[0].blob))
    await scene.catalog.add([descriptor], [Source("127.0.0.1:1", "elsewhere")])
    scene.fake.fault(stall(1), f"blobs/{descriptor.digest}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.blobs.ensure, descriptor)
        await scene.stalled()
        await scene.images.pull(digest)
        scene.fake.release()


async def test_an_uncompressed_layer_is_content_at_once(scene: Scene) -> None:
    await scene.pulled(OTHER)
    assert await scene.content.read(PLAIN.digest) == PLAIN.tar
    assert scene.content.path(PLAIN.digest).samefile(scene.stored.get(PLAIN.diff_id).tar)
    assert BASE.digest not in scene.content


async def test_a_cancelled_waiter_leaves_the_pull_to_the_others(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(stall(10), BASE.digest)
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def impatient() -> None:
            with first:
                await scene.images.pull(digest)

        nursery.start_soon(impatient)
        await scene.stalled()
        nursery.start_soon(scene.images.pull, digest)
        await wait_all_tasks_blocked(0.01)
        first.cancel()
        await wait_all_tasks_blocked(0.01)
        scene.fake.release()
    assert scene.fake.requests("blob") == 3
    assert scene.images.local_snapshot(digest, AMD64)


async def test_cancelling_a_blob_tells_its_readers_and_leaves_nothing(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    config = Descriptor(Digest.of(BOX.config), len(BOX.config), OCI_CONFIG)
    scene.fake.fault(stall(10), config.digest)
    errors: list[ImgfsError] = []

    async def read() -> None:
        try:
            await scene.blobs.read(config)
        except ImgfsError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await scene.stalled()
        scene.blobs.cancel(config.digest)
    assert [type(one) for one in errors] == [Cancelled]
    assert (scene.temporary(), list(scene.transfers)) == ([], [])
    assert await scene.blobs.read(config) == BOX.config
    assert digest in scene.content


async def test_a_cut_stream_is_resumed_and_each_byte_comes_once(scene: Scene, mock_clock: MockClock) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(cut_at(20), BASE.digest)
    await scene.images.pull(digest)
    ranges = [one.range for one in scene.fake.log if BASE.digest in one.path]
    assert ranges == [None, f"bytes=20-{len(BASE.blob) - 1}"]


def described(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": Digest.of(data), "size": len(data)}


def with_config(made: Image, config: bytes, **manifest: object) -> Image:
    """Return the same layers under another config, with the right descriptor."""
    document = json.loads(made.document) | {"config": described(config, OCI_CONFIG)} | manifest
    return replace(made, config=config, document=json.dumps(document).encode())


def lying(*diff_ids: Digest) -> bytes:
    return json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()


@pytest.mark.parametrize("config_first", [False, True])
async def test_a_wrong_diff_id_makes_no_snapshot_and_costs_no_second_download(scene: Scene, config_first: bool) -> None:
    diff_id = TOP.diff_id
    made = with_config(image([BASE]), lying(diff_id))
    digest = await scene.resolved(made)
    if config_first:
        await scene.blobs.ensure(Descriptor(Digest.of(made.config), len(made.config), OCI_CONFIG))
    for _ in range(2):
        with pytest.raises(VerificationFailed, match=f"the image config says {diff_id}"):
            await scene.images.pull(digest)
    assert list(scene.graph) == []
    assert len([one for one in scene.fake.log if BASE.digest in one.path]) == 1
    assert "config says" in (scene.failures.get(digest) or "")
    assert scene.images.local_snapshot(digest, AMD64) is None


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (with_config(image([BASE]), lying(Digest.of(BASE.tar, "sha512"))), Unsupported, "proves sha256 only"),
        (with_config(BOX, lying(BASE.diff_id)), Malformed, "1 diff IDs for 2 layers"),
        (with_config(BOX, lying(BASE.diff_id, TOP.diff_id, TOP.diff_id)), Malformed, "3 diff IDs for 2 layers"),
        (with_config(BOX, lying()), Malformed, "0 diff IDs for 2 layers"),
        (with_config(BOX, b"{"), Malformed, "image config"),
        (with_config(BOX, lying(), layers=[described(b"x", "text/x")]), Unsupported, "layer of media type"),
        (image([layer(b"no tar" * 200)]), Malformed, "tar entry"),
        (image([replace(BASE, blob=b"no gzip")]), Malformed, "gzip"),
    ],
    ids=["sha512", "few", "many", "none", "cut", "type", "tar", "gzip"],
)
async def test_an_image_that_contradicts_itself_is_told_so(
    scene: Scene, made: Image, error: type[ImgfsError], said: str
) -> None:
    digest = await scene.resolved(made)
    with pytest.raises(error, match=said) as caught:
        await scene.images.pull(digest)
    assert scene.failures.get(digest) == caught.value.message
    assert list(scene.graph) == []
    await scene.all_durable()
    assert [path for path in scene.temporary() if "layers" in path.parts] == []


async def test_a_config_over_the_limit_is_not_even_asked_for(scene: Scene) -> None:
    config = {"mediaType": DOCKER_CONFIG, "digest": Digest.of(b"x"), "size": CONFIG_SIZE_MAX + 1}
    digest = await scene.resolved(
        replace(BOX, document=json.dumps(json.loads(BOX.document) | {"config": config}).encode())
    )
    with pytest.raises(TooLarge, match="image config"):
        await scene.images.pull(digest)
    assert scene.fake.requests("blob") == 0


@pytest.mark.parametrize("victim", [Digest.of(BOX.config), BASE.digest], ids=["config", "layer"])
async def test_wrong_bytes_are_asked_for_once_more_and_are_never_stored(
    scene: Scene, mock_clock: MockClock, victim: Digest
) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(wrong_bytes(), victim, times=2)
    with pytest.raises(VerificationFailed):
        await scene.images.pull(digest)
    assert len([one for one in scene.fake.log if victim in one.path]) == 2
    assert victim not in scene.content
    assert scene.failures.get(victim)
    scene.forget_failures()
    await scene.images.pull(digest)
    assert (scene.failures.get(victim), scene.failures.get(digest)) == (None, None)
    assert scene.temporary() == []


async def test_wrong_bytes_once_are_nobodys_trouble(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(wrong_bytes(), BASE.digest)
    await scene.images.pull(digest)
    assert scene.failures.get(BASE.digest) is None


async def test_a_thousand_readers_of_a_dead_blob_make_one_attempt_until_it_is_forgotten(
    scene: Scene, mock_clock: MockClock
) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(status(404), BASE.digest, times=1)
    for _ in range(5):
        with pytest.raises(NotFound):
            await scene.images.snapshot(digest)
    assert len([one for one in scene.fake.log if BASE.digest in one.path]) == 1
    scene.forget_failures()
    await scene.images.pull(digest)


async def test_a_new_layer_is_synced_when_somebody_waits_for_it(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    await scene.images.snapshot(digest)
    await wait_all_tasks_blocked(0.01)
    assert not any(map(scene.stored.is_durable, scene.stored))
    await scene.images.pull(digest)
    assert all(map(scene.stored.is_durable, scene.stored))


async def test_layers_of_a_pull_are_synced_while_others_come(scene: Scene) -> None:
    digest = await scene.resolved(BOX)
    scene.fake.fault(stall(10), BASE.digest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.images.pull, digest)
        while not (TOP.diff_id in scene.stored and scene.stored.is_durable(scene.stored.get(TOP.diff_id))):
            await trio.lowlevel.checkpoint()
        assert BASE.diff_id not in scene.stored
        scene.fake.release()


async def test_a_new_layer_is_synced_a_breath_behind_its_first_reader(scene: Scene) -> None:
    await scene.images.snapshot(await scene.resolved(BOX))
    await wait_all_tasks_blocked(0.01)
    scene.clock.jump(SYNC_DELAY)
    while not all(map(scene.stored.is_durable, scene.stored)):
        await trio.lowlevel.checkpoint()


async def test_a_new_layer_is_kept_by_a_daemon_that_ends(
    tmp_path: Path, registry: FakeRegistry, mock_clock: MockClock
) -> None:
    async with opened(tmp_path, registry, mock_clock) as scene:
        await scene.images.snapshot(await scene.resolved(BOX))
        here = {layer.diff_id for layer in scene.stored}
    async with opened(tmp_path, registry, mock_clock) as scene:
        assert {layer.diff_id for layer in scene.stored} == here != set()


async def test_a_layer_that_does_not_become_durable_fails_the_pull_and_not_the_reader(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await scene.resolved(BOX)

    def full(self: LayerStore, _: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LayerStore, "place", full)
        snapshot = await scene.images.snapshot(digest)
        assert await scene.views.get(snapshot)
        await wait_all_tasks_blocked(0.01)
        for _ in range(2):
            with pytest.raises(NoSpace):
                await scene.images.pull(digest)
        assert scene.failures.get(BASE.digest)
    asked = scene.fake.requests()
    await scene.images.pull(digest)
    assert scene.fake.requests() == asked
    assert all(map(scene.stored.is_durable, scene.stored))
    assert scene.failures.get(BASE.digest) is None
    assert scene.temporary() == []


async def test_a_pull_that_fails_of_one_layer_leaves_no_other_behind_to_fail_the_next_pull(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, slow = await scene.resolved(BOX), Event()

    def full(self: LayerStore, one: Layer) -> None:
        if one.diff_id == TOP.diff_id:
            slow.wait(10)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LayerStore, "place", full)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def pull() -> None:
                with pytest.raises(NoSpace):
                    await scene.images.pull(digest)
                assert slow.is_set()

            await wait_all_tasks_blocked(0.1)
            slow.set()
    await scene.images.pull(digest)
    assert all(map(scene.stored.is_durable, scene.stored))


async def test_a_layer_whose_sync_failed_is_not_served_any_more_and_comes_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await scene.resolved(BOX)
    real = os.fsync

    def failing(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith("/tar"):
            raise OSError(5, "Input/output error")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StorageFailed, match="Input/output error"):
            await scene.images.pull(digest)
        await wait_all_tasks_blocked(0.01)
    assert list(scene.stored) == []
    assert scene.temporary() == []
    scene.forget_failures()
    await scene.images.pull(digest)
    assert len(list(scene.stored)) == len(BOX.layers)
    assert all(map(scene.stored.is_durable, scene.stored))


async def test_a_layer_that_was_lost_before_anybody_waited_for_it_is_told_of(scene: Scene) -> None:
    await scene.pulled(BOX)
    layer = scene.stored.get(BASE.diff_id)
    scene.stored.lose(layer)
    with pytest.raises(StorageFailed, match=f"layer {BASE.diff_id}: was taken away before it was on disk"):
        await scene.layers.wait_durable(layer)


async def test_a_disk_full_at_the_link_of_a_plain_layer_leaves_the_daemon_alive(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, base = (Descriptor(one.digest, len(one.blob), one.media_type(docker=False)) for one in (PLAIN, BASE))
    OTHER.add_to(scene.fake, REPOSITORY)
    await scene.catalog.add([plain, base], [Source(scene.fake.host, REPOSITORY)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imgfs.disk.calls.os.link", full)
    layer = await scene.layers.ensure(plain, PLAIN.diff_id)
    with pytest.raises(NoSpace):
        await scene.layers.wait_durable(layer)
    assert "make room" in (scene.failures.get(PLAIN.digest) or "")
    assert (await scene.layers.ensure(base, BASE.diff_id)).diff_id == BASE.diff_id


async def test_what_a_crash_left_is_gone_and_the_rest_is_not_asked_for(
    scene: Scene, tmp_path: Path, mock_clock: MockClock
) -> None:
    digest = await scene.pulled(BOX)
    (scene.root / "ingest" / temporary_name()).write_bytes(b"half")
    (scene.root / "layers" / "sha256" / temporary_name()).mkdir()
    async with opened(tmp_path / "state", scene.fake, mock_clock) as again:
        assert again.temporary() == []
        await again.images.pull(digest)
    assert scene.fake.requests() == 0


async def test_an_image_without_layers(scene: Scene) -> None:
    digest = await scene.resolved(image([]))
    snapshot = await scene.images.pull(digest)
    assert set((await scene.views.get(snapshot)).tree.root.children or ()) == set()


@pytest.mark.parametrize(
    ("copied_min", "at_once"), [(1, PASSES_A_HOST), (COPIED_MIN, GATHERED_A_HOST)], ids=["large", "small"]
)
async def test_many_layers_come_side_by_side_but_no_more_than_a_host_gets(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, copied_min: int, at_once: int
) -> None:
    monkeypatch.setattr("imgfs.transfer.copies.COPIED_MIN", copied_min)
    made = image([layer([File(f"{n}", b"x" * n)]) for n in range(30)])
    digest = await scene.resolved(made)
    scene.fake.fault(stall(1), "blobs", times=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.images.pull, digest)
        while len(scene.transfers) <= at_once:  # the config counts too
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(0.05)
        assert len(scene.transfers) == at_once + 1
        scene.fake.release(31)
    assert scene.transfers.completed["pull"] == 31
    assert scene.transfers.moved["pull"] == len(made.config) + sum(len(one.blob) for one in made.layers)


async def test_one_dead_registry_does_not_hold_back_the_layers_of_another(scene: Scene) -> None:
    with FakeRegistry() as other:
        dead = image([layer([File(f"dead{n}", b"x" * n)]) for n in range(12)])
        first = await scene.resolved(dead)
        BOX.add_to(other, REPOSITORY, "1")
        second = await scene.resolver.resolve(replace(scene.reference(), host=other.host))
        scene.fake.fault(stall(), "blobs", times=None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(scene.images.pull, first))
            await scene.stalled()
            await scene.images.pull(second)
            nursery.cancel_scope.cancel()
