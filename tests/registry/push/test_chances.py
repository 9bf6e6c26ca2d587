"""Uploads to a registry with random faults at random times: each upload ends, and what is stored is correct."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from trio.testing import MockClock

from imgfs.errors import ImgfsError
from imgfs.testing.reply import Reply
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import CHUNK, REPOSITORY, Bytes, Pushing

STATUSES = (200, 201, 202, 204, 301, 400, 403, 404, 405, 409, 413, 415, 416, 429, 500, 503)
REQUESTS_MAX = 150
"""The most requests that five parts with some faults may need, over all attempts."""


def mischief(chance: random.Random, budget: list[int], is_planned: bool) -> Callable[[Reply], Reply | None]:
    """Return a random fault, which strikes while its budget lasts. With `is_planned` it also replaces true answers."""

    def act(reply: Reply) -> Reply | None:
        is_second_look = bool(reply.status) and not is_planned
        if is_second_look or not budget[0] or chance.random() < 0.6:
            return reply
        budget[0] -= 1
        if chance.random() < 0.3:
            return None
        made = Reply(chance.choice(STATUSES))
        headers = {"Range": f"0-{chance.randrange(30_000)}", "Retry_After": "1", "Location": "/v2/x/blobs/uploads/none"}
        return made.headed(**{name: value for name, value in headers.items() if chance.random() < 0.3})

    return act


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_a_registry_does_an_upload_ends_and_stores_nothing_wrong(
    mock_clock: MockClock, seed: int
) -> None:
    chance = random.Random(seed)
    blob = Bytes(chance.randbytes(chance.choice([0, 1, 100, CHUNK, CHUNK + 1, 5 * CHUNK - 7])))
    budget = [chance.randrange(20)]
    with PushRegistry() as fake:
        fake.takes_parts, fake.forgets = chance.random() < 0.8, chance.random() < 0.3
        fake.cuts = [chance.randrange(2 * CHUNK) for _ in range(chance.randrange(5))]
        fake.fault(mischief(chance, budget, is_planned=False), "^(POST|PATCH|PUT)", times=None)
        fake.fault(mischief(chance, budget, is_planned=True), "^(GET|HEAD)", times=None)
        pushing = Pushing(mock_clock, fake)
        async with pushing.registry:
            with suppress(ImgfsError):
                await pushing.upload(blob)
            assert len(fake.log) < REQUESTS_MAX
            assert fake.blob(REPOSITORY, blob.descriptor.digest) in (None, blob.data)
            fake.reset()
            fake.cuts.clear()
            await pushing.upload(blob)
            assert fake.blob(REPOSITORY, blob.descriptor.digest) == blob.data
