"""Refusals of an upload by registries, and the reaction: another token, a pause, or an error with the reason."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.errors import (
    AccessDenied,
    NotFound,
    RateLimited,
    RegistryFailed,
    VerificationFailed,
)
from imgfs.testing.faults import status
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import LARGE, REPOSITORY, SMALL, Bytes, Pushing


async def test_a_token_that_ends_in_the_middle_is_renewed(mock_clock: MockClock) -> None:
    with PushRegistry(token=True) as fake:
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            challenge = f'Bearer realm="{fake.url}/token",service="fake"'
            fake.fault(status(401, WWW_Authenticate=challenge), "PATCH")
            blob = Bytes(LARGE)
            await pushing.upload(blob)
        assert fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
        assert fake.requests("token") == 2
        assert set(fake.tokens.values()) == {f"repository:{REPOSITORY}:pull,push"}


async def test_who_may_not_push_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(403, b'{"errors":[{"code":"DENIED"}]}'), "POST", times=None)
    with pytest.raises(AccessDenied, match="403 DENIED"):
        await pushing.upload(Bytes(SMALL))


async def test_a_repository_that_has_to_be_made_first_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}'), "POST", times=None)
    with pytest.raises(NotFound, match="404 NAME_UNKNOWN; make the repository first"):
        await pushing.upload(Bytes(SMALL))


async def test_a_registry_that_takes_no_pushes_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.takes_pushes = False
    with pytest.raises(RegistryFailed, match=r"405.*it takes none; push to a registry that does"):
        await pushing.upload(Bytes(SMALL))


async def test_a_limit_of_requests_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(413), "PUT")
    with pytest.raises(RegistryFailed, match=f"413 to {len(SMALL)} bytes"):
        await pushing.upload(Bytes(SMALL))


async def test_other_bytes_than_were_sent_are_told_and_not_sent_again(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}'), "PUT")
    with pytest.raises(VerificationFailed, match="DIGEST_INVALID"):
        await pushing.upload(Bytes(LARGE))
    assert pushing.fake.sent() == len(LARGE)
    await pushing.upload(Bytes(LARGE))
    assert pushing.fake.asked("upload").count("POST upload") == 2


async def test_a_registry_that_stores_something_else_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(201, Docker_Content_Digest=Bytes(b"else").descriptor.digest), "PUT")
    with pytest.raises(VerificationFailed, match="stored it as"):
        await pushing.upload(Bytes(SMALL))


async def test_rest_is_granted_and_the_upload_goes_on(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(429, Retry_After="7"), "PATCH")
    pushing.fake.fault(status(503, Retry_After="3"), "PUT")
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE
    assert [seconds for seconds in pushing.slept if seconds > 2] == [
        pytest.approx(7, abs=0.1),
        pytest.approx(3, abs=0.1),
    ]


async def test_a_registry_that_always_wants_rest_is_given_up(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(429, Retry_After="30"), "PATCH", times=None)
    with pytest.raises(RateLimited):
        await pushing.upload(Bytes(LARGE))
    assert sum(pushing.slept) <= 61
