"""The URL at which an upload continues: what a registry may name, and what it may not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from imgfs.errors import (
    ImgfsError,
    RegistryFailed,
)
from imgfs.testing.faults import redirect, status
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import LARGE, REPOSITORY, SMALL, Bytes, Pushing


@pytest.fixture
def other() -> Iterator[PushRegistry]:
    """Another origin, to which uploads of `fake` may be sent."""
    with PushRegistry() as other:
        yield other


async def test_relative_locations_are_followed(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.elsewhere = ""
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


async def test_a_query_in_the_location_is_kept(mock_clock: MockClock, pushing: Pushing) -> None:
    await pushing.upload(Bytes(SMALL))
    assert pushing.fake.log[-1].path.partition("?")[2].startswith("state=canary&digest=sha256%3A")


async def test_another_host_gets_the_blob_but_no_login(mock_clock: MockClock, other: PushRegistry) -> None:
    with PushRegistry(token=True) as fake:
        other.sessions, other.repositories, other._blobs = fake.sessions, fake.repositories, fake._blobs
        fake.elsewhere = other.elsewhere = other.url
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            blob = Bytes(LARGE)
            await pushing.upload(blob)
        assert fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
        assert fake.asked("upload") == ["POST upload"] * 2
        assert other.asked("upload")[-1] == "PUT upload"
        assert not [one for one in other.log if "authorization" in one.headers]


@pytest.mark.parametrize("place", ["ftp://127.0.0.1", "http://user@127.0.0.1:1", "http://[", "file://"])
async def test_a_location_that_leads_nowhere_is_refused(mock_clock: MockClock, pushing: Pushing, place: str) -> None:
    pushing.fake.fault(status(202, Location=f"{place}/v2/x"), "POST")
    with pytest.raises(RegistryFailed):
        await pushing.upload(Bytes(SMALL))


async def test_an_upload_without_a_location_is_refused(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(202), "POST")
    with pytest.raises(RegistryFailed, match="without a Location"):
        await pushing.upload(Bytes(SMALL))


async def test_a_redirect_that_loses_the_body_is_not_followed(
    mock_clock: MockClock, pushing: Pushing, other: PushRegistry
) -> None:
    pushing.fake.fault(redirect(f"{other.url}/v2/x", 302), "PUT")
    with pytest.raises(RegistryFailed, match="redirects with 302"):
        await pushing.upload(Bytes(SMALL))
    assert other.log == []


async def test_a_redirect_that_keeps_the_body_is_followed(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(redirect(f"{pushing.fake.url}/v2/{REPOSITORY}/blobs/uploads/?again", 307), "POST")
    blob = Bytes(SMALL)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == SMALL


async def test_no_message_holds_the_upload_s_address(mock_clock: MockClock, pushing: Pushing) -> None:
    failures: list[ImgfsError] = []
    for code in (400, 403, 404, 405, 413, 429, 500):
        pushing.fake.reset()
        pushing.fake.fault(status(code), "PUT", times=None)
        with pytest.raises(ImgfsError) as caught:
            await pushing.upload(Bytes(SMALL))
        failures.append(caught.value)
    assert not [one for one in failures if "canary" in one.message]
    assert all(f"{pushing.fake.host}/{REPOSITORY}" in one.message for one in failures)
