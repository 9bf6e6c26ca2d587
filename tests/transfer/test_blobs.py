"""Fetching blobs into the content store: one flight, the right endpoint of the registry, and the locations."""

from __future__ import annotations

import pytest
import trio

from imgfs.errors import ImgfsError, NoSpace, NotFound, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.testing.faults import longer, stall, status, wrong_length
from imgfs.testing.images import File, image, layer
from imgfs.testing.registry import FakeRegistry
from imgfs.transfer.blobs import known_descriptor
from tests.transfer.scene import REPOSITORY, Scene

DATA = b"a signature, say" * 1000
BLOB = Descriptor(Digest.of(DATA), len(DATA), "application/octet-stream")
BOX = image([layer([File("f")])])


@pytest.fixture
async def known(scene: Scene) -> Descriptor:
    """Return a blob that the registry has and the catalogue knows."""
    scene.fake.add_blob(DATA)
    await scene.catalog.add([BLOB], [Source(scene.fake.host, REPOSITORY)])
    return BLOB


async def test_a_blob_is_fetched_once_and_then_read_here(scene: Scene, known: Descriptor) -> None:
    assert await scene.blobs.read(known) == DATA
    assert await scene.blobs.read(known) == DATA
    assert scene.fake.requests() == 1
    assert (scene.transfers.completed["pull"], scene.transfers.moved["pull"]) == (1, len(DATA))


async def test_fifty_readers_cause_one_request_and_see_its_progress(scene: Scene, known: Descriptor) -> None:
    scene.fake.fault(stall(100), known.digest)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(scene.blobs.ensure, known)
        await scene.stalled()
        (running,) = scene.transfers
        assert (running.digest, running.total) == (known.digest, known.size)
        assert running.place == f"{scene.fake.host}/{REPOSITORY}"
        assert scene.transfers.get(known.digest) is running
        scene.fake.release()
    assert scene.fake.requests() == 1
    assert list(scene.transfers) == []


async def test_a_manifest_comes_through_the_manifests_door(scene: Scene) -> None:
    BOX.add_to(scene.fake, REPOSITORY)
    descriptor = Descriptor(BOX.digest, len(BOX.document), BOX.media_type)
    await scene.catalog.add([descriptor], [Source(scene.fake.host, REPOSITORY)])
    assert await scene.blobs.read(descriptor) == BOX.document
    assert [one.kind for one in scene.fake.log] == ["manifest"]


@pytest.mark.parametrize(
    "fault", [wrong_length(len(DATA) - 1), longer(1), longer(1, announced=True)], ids=["short", "long", "announced"]
)
async def test_another_length_than_promised_is_refused_and_leaves_nothing(
    scene: Scene, known: Descriptor, fault: object
) -> None:
    assert callable(fault)
    scene.fake.fault(fault, "", times=None)
    with pytest.raises(VerificationFailed):
        await scene.blobs.ensure(known)
    assert known.digest not in scene.content
    assert scene.temporary() == []
    assert scene.failures.get(known.digest)


async def test_another_place_serves_what_the_first_has_lost(scene: Scene, known: Descriptor) -> None:
    with FakeRegistry() as other:
        other.add_blob(DATA)
        await scene.catalog.add([known], [Source(other.host, "mirror")])
        scene.fake.fault(status(404), "", times=None)
        assert await scene.blobs.read(known) == DATA
        assert other.requests() == 1


async def test_a_full_disk_is_told_and_no_other_place_is_asked(
    scene: Scene, known: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imgfs.content.store.os.fsync", full)
    with pytest.raises(NoSpace):
        await scene.blobs.ensure(known)
    assert scene.fake.requests() == 1
    assert scene.temporary() == []


async def test_what_nobody_mentioned_is_not_found_without_a_request(scene: Scene) -> None:
    with pytest.raises(NotFound, match="no known image mentions it"):
        await known_descriptor(scene.catalog, BLOB.digest)
    with pytest.raises(NotFound, match="no known image says where"):
        await scene.blobs.ensure(BLOB)
    assert scene.fake.requests() == 0


async def test_a_deleted_blob_comes_again(scene: Scene, known: Descriptor) -> None:
    await scene.blobs.ensure(known)
    await scene.content.delete(known.digest)
    assert await scene.blobs.read(await known_descriptor(scene.catalog, known.digest)) == DATA
    assert scene.fake.requests() == 2


async def test_cancelling_what_is_not_fetched_is_nothing(scene: Scene, known: Descriptor) -> None:
    scene.blobs.cancel(known.digest)
    assert await scene.blobs.read(known) == DATA


async def test_failures_are_kept_by_subject_until_it_goes_well_and_are_bounded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.failures._KEPT", 3)
    for number in range(5):
        scene.failures.note(f"s{number}", ImgfsError(f"e{number}"))
    assert [scene.failures.get(f"s{number}") for number in range(5)] == [None, None, "e2", "e3", "e4"]
    scene.failures.note("s2", ImgfsError("again"))
    scene.failures.note("s5", ImgfsError("e5"))
    assert (scene.failures.get("s2"), scene.failures.get("s3")) == ("again", None)
    scene.failures.clear("s2")
    scene.failures.clear("never")
    assert scene.failures.get("s2") is None
