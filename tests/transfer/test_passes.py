"""A blob that is read as content while it is fetched as a layer: the bytes come once, and no reader waits in vain."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.errors import ImgfsError, Malformed, NoSpace, Unreachable
from imgfs.layers.writer import LayerWriter
from imgfs.oci.descriptor import Descriptor
from imgfs.testing.build import BuiltLayer as Made
from imgfs.testing.faults import close, cut_at, stall
from imgfs.testing.images import File, image, layer
from tests.transfer.scene import Scene

MADE = layer([File("f", b"content" * 5000)])
PLAIN = layer([File("plain", b"plain" * 1000)], "none")
GATHERED, COPIED = 1 << 20, 1


@pytest.fixture(params=[GATHERED, COPIED], ids=["gathered", "copied"], autouse=True)
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgfs.transfer.copies.COPIED_MIN", request.param)


def described(made: Made) -> Descriptor:
    return Descriptor(made.digest, len(made.blob), made.media_type(docker=False))


class Readers:
    """Two tasks: the first fetches a blob as a layer, the second reads it as content."""

    def __init__(self, scene: Scene, nursery: trio.Nursery, made: Made = MADE) -> None:
        self.descriptor = described(made)
        self.of_layer = trio.CancelScope()
        self.failed: list[ImgfsError] = []
        self._scene = scene
        self._made = made
        self._nursery = nursery

    async def begin(self, *, dying: bool = False) -> None:
        """Start the reader of the content when half of the layer has arrived. A `dying` registry sends no more."""
        await self._scene.resolved(image([self._made]))
        half = len(self._made.blob) // 2
        cut = cut_at(half if dying else len(self._made.blob))
        self._scene.fake.fault(lambda reply: stall(half)(cut(reply) or reply), self._made.digest)
        self._nursery.start_soon(self._read_layer)
        await self._scene.stalled()
        self._nursery.start_soon(self._read_content)
        await wait_all_tasks_blocked(0.01)

    def asked(self) -> list[str | None]:
        """The ranges that were requested from the registry."""
        return [one.range for one in self._scene.fake.log if self.descriptor.digest in one.path]

    async def _read_layer(self) -> None:
        with self.of_layer:
            await self._told(self._scene.layers.ensure(self.descriptor, None))

    async def _read_content(self) -> None:
        await self._told(self._scene.blobs.ensure(self.descriptor))

    async def _told(self, read: Awaitable[object]) -> None:
        try:
            await read
        except ImgfsError as error:
            self.failed.append(error)


async def test_its_bytes_come_once(scene: Scene, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery)
        await readers.begin()
        scene.fake.release()
    assert await scene.content.read(MADE.digest) == MADE.blob
    assert MADE.diff_id in scene.stored
    assert readers.asked() == [None]
    assert list(scene.ingests) == []
    await scene.all_durable()
    assert scene.temporary() == []


async def test_an_uncompressed_one_is_the_tar_itself(scene: Scene, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery, PLAIN)
        await readers.begin()
        scene.fake.release()
    await scene.all_durable()
    assert readers.asked() == [None]
    assert scene.content.path(PLAIN.digest).samefile(scene.stored.get(PLAIN.diff_id).tar)


async def test_who_left_has_nothing_kept_for_him(scene: Scene, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery)
        await readers.begin()
        scene.blobs.cancel(MADE.digest)
        await wait_all_tasks_blocked(0.01)
        scene.fake.release()
    await scene.all_durable()
    assert MADE.digest not in scene.content
    assert list(scene.ingests) == []


async def test_it_goes_on_for_him_when_nobody_wants_the_layer(scene: Scene, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery)
        await readers.begin()
        readers.of_layer.cancel()
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(20)
        await wait_all_tasks_blocked(0.01)
        scene.fake.release()
    assert await scene.content.read(MADE.digest) == MADE.blob
    assert readers.asked() == [None]


async def test_what_is_no_layer_is_a_blob_all_the_same(scene: Scene, mock_clock: MockClock) -> None:
    made = replace(MADE, blob=b"no gzip at all" * 1000)
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery, made)
        await readers.begin()
        scene.fake.release()
    assert [type(one) for one in readers.failed] == [Malformed]
    assert await scene.content.read(made.digest) == made.blob


async def test_a_registry_that_dies_fails_both_and_is_not_asked_twice_as_often(
    scene: Scene, mock_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery)
        await readers.begin(dying=True)
        scene.fake.fault(close(), MADE.digest, times=None)
        scene.fake.release()
    assert [type(one) for one in readers.failed] == [Unreachable, Unreachable]
    assert len(readers.asked()) <= 4
    assert MADE.digest not in scene.content


async def test_a_disk_without_room_for_the_tar_may_have_some_for_the_blob(
    scene: Scene, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NoSpace("layer: full")

    monkeypatch.setattr(LayerWriter, "append", full)
    async with trio.open_nursery() as nursery:
        readers = Readers(scene, nursery)
        await readers.begin()
        scene.fake.release()
    assert [type(one) for one in readers.failed] == [NoSpace]
    assert await scene.content.read(MADE.digest) == MADE.blob
