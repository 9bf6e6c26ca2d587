"""Blobs that a registry mounts from its other repositories, and the uploads that refused mounts open."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.errors import (
    AccessDenied,
)
from imgfs.testing.faults import status
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import CHUNK, LARGE, REPOSITORY, SMALL, Bytes, Pushing


async def test_a_blob_is_taken_over_from_another_repository(mock_clock: MockClock) -> None:
    with PushRegistry(token=True) as fake:
        digest = fake.add("team/base", SMALL)
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            destination = await pushing.destination()
            assert not await destination.has_blob(digest)
            assert await destination.mount(digest, ["team/none", "team/base"]) == "team/base"
            assert await destination.has_blob(digest)
        assert fake.sent() == 0
        assert fake.sessions == {}, "the refused mount's upload was left open"
        assert f"repository:{REPOSITORY}:pull,push repository:team/base:pull" in fake.tokens.values()


async def test_a_mount_that_is_refused_has_begun_the_upload(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.mounts = False
    blob = Bytes(SMALL)
    pushing.fake.add("team/base", SMALL)
    destination = await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/base"]) is None
    await destination.upload(blob.descriptor, blob.read, pushing.offsets.append)
    assert pushing.fake.asked("upload") == ["POST upload", "PUT upload"]


async def test_of_several_refused_mounts_one_upload_stays_open_and_is_used(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    blob, destination = Bytes(SMALL), await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/a", "team/b", "team/c"]) is None
    assert len(pushing.fake.sessions) == 1
    await (await pushing.destination()).upload(blob.descriptor, blob.read, pushing.offsets.append)
    asked = ["POST upload", *["POST upload", "DELETE upload"] * 2, "PUT upload"]
    assert pushing.fake.asked("upload") == asked
    assert pushing.fake.sessions == {}


@pytest.mark.parametrize("code", [404, 405, 500])
async def test_leave_raises_nothing_if_the_upload_cannot_be_ended(
    mock_clock: MockClock, pushing: Pushing, code: int
) -> None:
    pushing.fake.fault(status(code), "DELETE", times=None)
    destination, digest = await pushing.destination(), Bytes(SMALL).descriptor.digest
    assert await destination.mount(digest, ["team/a"]) is None
    await destination.leave(digest)
    await destination.leave(digest)
    # There is one second for all attempts, and the random waits between them may use it up.
    assert pushing.fake.asked("upload").count("DELETE upload") in ((2, 3) if code == 500 else (1,))


@pytest.mark.parametrize("code", [400, 403, 404, 500])
async def test_a_registry_that_knows_no_mounts_gets_the_blob(
    mock_clock: MockClock, pushing: Pushing, code: int
) -> None:
    pushing.fake.fault(status(code), "POST .*mount=", times=None)
    blob = Bytes(SMALL)
    destination = await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/base"]) is None
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL


async def test_what_was_broken_off_goes_on_although_a_mount_has_begun_another_upload(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    pushing.fake.mounts = False
    blob = Bytes(LARGE)
    pushing.fake.fault(status(403), "PUT", times=1)
    with pytest.raises(AccessDenied):
        await pushing.upload(blob)
    pushing.fake.log.clear()
    destination = await pushing.destination()
    assert await destination.mount(blob.descriptor.digest, ["team/base"]) is None
    await destination.upload(blob.descriptor, blob.read, pushing.offsets.append)
    assert pushing.fake.sent() < CHUNK
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert pushing.fake.sessions == {}
