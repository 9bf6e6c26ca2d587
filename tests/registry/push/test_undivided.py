"""Registries that do not accept blobs in parts, or not in the parts that imgfs sends."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from imgfs.testing.faults import status
from tests.registry.push.pushing import CHUNK, LARGE, REPOSITORY, Bytes, Pushing, parts


async def test_a_registry_without_parts_gets_the_blob_whole_and_is_remembered(
    mock_clock: MockClock, pushing: Pushing
) -> None:
    pushing.fake.takes_parts = False
    for blob in (Bytes(LARGE), Bytes(LARGE * 2)):
        await pushing.upload(blob)
        assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == blob.data
    assert pushing.fake.asked("upload") == ["POST upload", "PATCH upload"] + ["POST upload", "PUT upload"] * 2


async def test_a_whole_blob_that_breaks_without_parts_is_sent_again(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.takes_parts = False
    pushing.fake.cuts = [CHUNK, 5000]
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert pushing.fake.blob(REPOSITORY, blob.descriptor.digest) == LARGE


@pytest.mark.parametrize("code", [400, 404, 415, 416])
async def test_a_part_that_is_refused_makes_it_go_whole(mock_clock: MockClock, pushing: Pushing, code: int) -> None:
    pushing.fake.fault(status(code), "PATCH")
    blob = Bytes(LARGE)
    await pushing.upload(blob)
    assert parts(pushing.fake)[-1] == ("PUT", None, len(LARGE))
    await pushing.upload(Bytes(LARGE + b"more"))
    assert parts(pushing.fake)[-1] == ("PUT", None, 0)
