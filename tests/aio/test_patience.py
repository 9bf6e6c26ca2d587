"""Time without progress: counted once for all tasks of a request, never for work that outlives the request."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from imgfs.aio.flight import Flights
from imgfs.aio.patience import Patience, current_patience, one_request


async def test_only_waiting_counts_and_progress_turns_it_back(mock_clock: MockClock) -> None:
    patience = Patience()
    mock_clock.jump(5)
    with patience.waiting():
        mock_clock.jump(10)
        patience.gained(4)
        with patience.waiting():
            mock_clock.jump(1)
    mock_clock.jump(5)
    assert patience.idle == 7
    patience.gained(100)
    assert patience.idle == 0
    patience.lost(3)
    assert patience.idle == 3


async def test_fetches_side_by_side_count_once(mock_clock: MockClock) -> None:
    patience = Patience()
    with patience.waiting(), patience.waiting():
        mock_clock.jump(10)
    assert patience.idle == 10


async def test_tasks_of_a_request_share_its_patience_until_it_ends(mock_clock: MockClock) -> None:
    seen: list[Patience | None] = []

    async def look(ended: trio.Event) -> None:
        seen.append(current_patience())
        await ended.wait()
        seen.append(current_patience())

    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        with one_request() as patience:
            nursery.start_soon(look, ended)
            await trio.testing.wait_all_tasks_blocked()
        ended.set()
    assert seen == [patience, None]
    assert current_patience() is None


async def test_a_waiter_pays_for_what_the_flight_of_another_request_loses(mock_clock: MockClock) -> None:
    patiences: list[Patience] = []

    async def lose() -> None:
        patience = current_patience()
        assert patience is not None
        with patience.waiting():
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(30)

    async def ask(flights: Flights[None]) -> None:
        with one_request() as patience:
            patiences.append(patience)
            await flights.join("key", lose)

    async with trio.open_nursery() as nursery:
        flights = Flights[None](nursery)
        nursery.start_soon(ask, flights)
        nursery.start_soon(ask, flights)
    assert [patience.idle for patience in patiences] == [30, 30]
