"""Cached grants: for which calls, for how long, and how many."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.registry.auth.grants import GRANTS_MAX, Grant, Grants
from imgfs.registry.credentials.authfile import Login

LOGIN = Login("registry.example")


class Endpoint:
    """Returns a grant for each key, valid for some seconds, and counts its calls."""

    def __init__(self, grants: Grants, seconds: float) -> None:
        self.asked = 0
        self._grants = grants
        self._seconds = seconds

    async def get(self, key: object) -> Grant:
        async def fetch() -> Grant:
            self.asked += 1
            await trio.lowlevel.checkpoint()
            return Grant(f"Bearer {key}", trio.current_time() + self._seconds, LOGIN)

        return await self._grants.fresh(key, None, fetch)


async def test_a_grant_is_asked_for_once_until_it_expires(mock_clock: MockClock) -> None:
    grants = Grants()
    endpoint = Endpoint(grants, 60)
    assert await endpoint.get("a") is await endpoint.get("a") is grants.current("a")
    assert endpoint.asked == 1
    mock_clock.jump(60)
    assert grants.current("a") is None
    await endpoint.get("a")
    assert endpoint.asked == 2


async def test_many_who_want_one_grant_share_a_request(mock_clock: MockClock) -> None:
    endpoint = Endpoint(Grants(), 60)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(endpoint.get, "a")
        await wait_all_tasks_blocked()
    assert endpoint.asked == 1


async def test_of_too_many_grants_the_oldest_go(mock_clock: MockClock) -> None:
    grants = Grants()
    endpoint = Endpoint(grants, 60)
    for number in range(GRANTS_MAX + 1):
        await endpoint.get(number)
    kept = [number for number in range(GRANTS_MAX + 1) if grants.current(number)]
    assert GRANTS_MAX // 4 < len(kept) <= GRANTS_MAX
    assert kept == list(range(kept[0], GRANTS_MAX + 1))


async def test_of_too_many_grants_those_that_have_expired_go_first(mock_clock: MockClock) -> None:
    grants = Grants()
    lasting, brief = Endpoint(grants, 3600), Endpoint(grants, 60)
    for number in range(10):
        await lasting.get(number)
    for number in range(10, GRANTS_MAX):
        await brief.get(number)
    mock_clock.jump(60)
    await brief.get("new")
    assert [number for number in range(GRANTS_MAX) if grants.current(number)] == list(range(10))
    assert grants.current("new")
