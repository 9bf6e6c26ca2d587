"""Single flights: one run for all waiters, shared and remembered failures, and flights without waiters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.aio.flight import Flights
from imgfs.errors import Cancelled, ImgfsError, NoSpace, NotFound, StorageFailed

GRACE, MEMORY = 10.0, 2.0


class Work:
    """Counts its runs and ends on request."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.go = trio.Event()
        self.error: BaseException | None = None

    async def __call__(self) -> int:
        self.runs += 1
        run = self.runs
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return run


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def flights(mock_clock: MockClock) -> AsyncIterator[Flights[int]]:
    async with trio.open_nursery() as nursery:
        yield Flights(nursery, grace=GRACE, memory=MEMORY)
        nursery.cancel_scope.cancel()


class Waiter:
    """A task that joins a flight and can be cancelled."""

    def __init__(self, nursery: trio.Nursery, flights: Flights[int], work: Callable[..., object]) -> None:
        self.scope = trio.CancelScope()
        self.result: int | None = None
        self.error: ImgfsError | None = None
        nursery.start_soon(self._run, flights, work)

    async def _run(self, flights: Flights[int], work: Work) -> None:
        with self.scope:
            try:
                self.result = await flights.join("key", work)
            except ImgfsError as error:
                self.error = error

    async def leave(self) -> None:
        self.scope.cancel()
        await wait_all_tasks_blocked()


async def joined(nursery: trio.Nursery, flights: Flights[int], work: Work, count: int = 1) -> list[Waiter]:
    waiters = [Waiter(nursery, flights, work) for _ in range(count)]
    await wait_all_tasks_blocked()
    return waiters


async def pass_time(clock: MockClock, seconds: float) -> None:
    clock.jump(seconds)
    # One round in which deadlines expire, one round for the tasks that they end.
    await wait_all_tasks_blocked(0.001)
    await wait_all_tasks_blocked(0.001)


async def test_fifty_joiners_cause_one_run_and_share_its_result(
    flights: Flights[int], work: Work, nursery: trio.Nursery
) -> None:
    waiters = await joined(nursery, flights, work, 50)
    assert "key" in flights
    work.go.set()
    await wait_all_tasks_blocked()
    assert [one.result for one in waiters] == [1] * 50
    assert "key" not in flights


async def test_a_later_joiner_causes_another_run(flights: Flights[int], work: Work) -> None:
    work.go.set()
    assert [await flights.join("key", work), await flights.join("key", work)] == [1, 2]


async def test_each_key_has_its_own_flight(flights: Flights[int], work: Work, nursery: trio.Nursery) -> None:
    nursery.start_soon(flights.join, "other", work)
    await joined(nursery, flights, work)
    assert work.runs == 2
    work.go.set()


async def test_a_failure_is_shared_remembered_and_then_tried_again(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    work.error = NotFound("blob: is gone")
    waiters = await joined(nursery, flights, work, 5)
    work.go.set()
    await wait_all_tasks_blocked()
    errors = [one.error for one in waiters]
    assert {type(one) for one in errors} == {NotFound}
    assert len({id(one) for one in errors}) == 5, "a shared exception object would collect the tracebacks of all"
    mock_clock.jump(MEMORY - 0.01)
    with pytest.raises(NotFound, match="blob: is gone"):
        await flights.join("key", work)
    assert work.runs == 1
    mock_clock.jump(0.01)
    work.error = None
    assert await flights.join("key", work) == 2


async def test_cancelled_is_not_remembered_as_a_failure(flights: Flights[int], work: Work) -> None:
    work.go.set()
    work.error = Cancelled("the ref was removed")
    with pytest.raises(Cancelled, match="the ref was removed"):
        await flights.join("key", work)
    work.error = None
    assert await flights.join("key", work) == 2


async def test_a_forgotten_failure_is_tried_again_at_once(flights: Flights[int], work: Work) -> None:
    work.go.set()
    work.error = NotFound("gone")
    with pytest.raises(NotFound):
        await flights.join("key", work)
    work.error = None
    flights.forget_failure("key")
    flights.forget_failure("never failed")
    assert await flights.join("key", work) == 2


async def test_failures_are_remembered_by_key(flights: Flights[int], work: Work) -> None:
    work.go.set()
    work.error = NotFound("gone")
    with pytest.raises(NotFound):
        await flights.join("key", work)
    work.error = None
    assert await flights.join("other", work) == 2


async def test_a_cancelled_first_waiter_does_not_affect_others(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    first, second = await joined(nursery, flights, work, 2)
    await first.leave()
    await pass_time(mock_clock, 100 * GRACE)
    work.go.set()
    await wait_all_tasks_blocked()
    assert (first.result, second.result, work.runs) == (None, 1, 1)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_an_abandoned_flight_ends_after_the_grace_and_not_before(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock, count: int
) -> None:
    for waiter in await joined(nursery, flights, work, count):
        await waiter.leave()
    await pass_time(mock_clock, GRACE - 0.01)
    assert ("key" in flights, work.cancelled) == (True, 0)
    await pass_time(mock_clock, 0.02)
    assert ("key" in flights, work.cancelled) == (False, 1)


async def test_an_abandoned_flight_may_end_before_the_grace_is_over(
    flights: Flights[int], work: Work, nursery: trio.Nursery
) -> None:
    assert not flights.cancel_abandoned("key")
    (waiter,) = await joined(nursery, flights, work)
    assert not flights.cancel_abandoned("key")
    await waiter.leave()
    assert flights.cancel_abandoned("key")
    await wait_all_tasks_blocked()
    assert ("key" in flights, work.cancelled) == (False, 1)


async def test_a_flight_that_was_joined_on_its_way_ends_when_both_have_left(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    (first,) = await joined(nursery, flights, work)
    (second,) = await joined(nursery, flights, work)
    await first.leave()
    await second.leave()
    await pass_time(mock_clock, GRACE + 1)
    assert ("key" in flights, work.cancelled) == (False, 1)


async def test_a_joiner_within_the_grace_keeps_it_flying(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    (first,) = await joined(nursery, flights, work)
    await first.leave()
    await pass_time(mock_clock, GRACE - 1)
    (second,) = await joined(nursery, flights, work)
    await pass_time(mock_clock, 100 * GRACE)
    work.go.set()
    await wait_all_tasks_blocked()
    assert (second.result, work.runs, work.cancelled) == (1, 1, 0)


async def test_the_grace_period_starts_when_the_last_waiter_leaves(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    (first,) = await joined(nursery, flights, work)
    await first.leave()
    await pass_time(mock_clock, GRACE - 2)
    (second,) = await joined(nursery, flights, work)
    await second.leave()
    await pass_time(mock_clock, GRACE - 1)
    assert "key" in flights
    await pass_time(mock_clock, 2)
    assert "key" not in flights


async def test_waiters_of_a_cancelled_flight_get_cancelled(
    flights: Flights[int], work: Work, nursery: trio.Nursery
) -> None:
    waiters = await joined(nursery, flights, work, 3)
    flights.cancel("key")
    flights.cancel("unknown")
    await wait_all_tasks_blocked()
    assert [type(one.error) for one in waiters] == [Cancelled] * 3
    work.go.set()
    assert await flights.join("key", work) == 2


async def test_a_caller_during_the_end_of_a_flight_gets_a_new_one(flights: Flights[int], nursery: trio.Nursery) -> None:
    landed = trio.Event()
    runs: list[int] = []

    async def slow_to_end() -> int:
        runs.append(1)
        if len(runs) > 1:
            return len(runs)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await landed.wait()
        return 0

    first = Waiter(nursery, flights, slow_to_end)
    await wait_all_tasks_blocked()
    flights.cancel("key")
    later = Waiter(nursery, flights, slow_to_end)
    await wait_all_tasks_blocked()
    assert runs == [1]
    landed.set()
    await wait_all_tasks_blocked()
    assert (type(first.error), later.result) == (Cancelled, 2)


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (ValueError("odd"), ImgfsError, "internal error: ValueError: odd"),
        (ExceptionGroup("several", [ValueError("odd")]), ImgfsError, "internal error"),
        (RecursionError("deep"), ImgfsError, "internal error: RecursionError"),
        (OSError(28, "No space left", "/state/x"), NoSpace, "/state/x"),
        (OSError(5, "Input/output error"), StorageFailed, "state directory"),
    ],
)
async def test_an_unexpected_exception_becomes_an_imgfs_error_and_the_nursery_survives(
    flights: Flights[int], work: Work, raised: Exception, kind: type[ImgfsError], said: str
) -> None:
    work.go.set()
    work.error = raised
    with pytest.raises(ImgfsError, match=said) as caught:
        await flights.join("key", work)
    assert type(caught.value) is kind
    work.error = None
    assert await flights.join("other", work) == 2


async def test_work_that_fails_while_it_is_cancelled_does_not_take_the_nursery_along(
    flights: Flights[int], work: Work, nursery: trio.Nursery
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise NotFound("while cancelled")

    async def team() -> int:
        async with trio.open_nursery() as team:
            team.start_soon(fail_when_cancelled)
            await trio.sleep_forever()
        return 0

    waiter = Waiter(nursery, flights, team)
    await wait_all_tasks_blocked()
    flights.cancel("key")
    await wait_all_tasks_blocked()
    assert isinstance(waiter.error, ImgfsError)
    work.go.set()
    assert await flights.join("other", work) == 1


async def test_the_end_of_the_daemon_cancels_flights_and_their_waiters(work: Work) -> None:
    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        flights: Flights[int] = Flights(nursery)
        (waiter,) = await joined(outer, flights, work)
        nursery.cancel_scope.cancel()
    assert (work.cancelled, type(waiter.error)) == (1, Cancelled)


async def test_the_memory_of_failures_is_bounded(
    flights: Flights[int], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.aio.flight._REMEMBERED_MAX", 10)
    work.go.set()
    work.error = NotFound("gone")
    for key in range(25):
        with pytest.raises(NotFound):
            await flights.join(key, work)
    assert len(flights._failed) <= 10


async def test_accompany_keeps_a_flight_alive_and_starts_none(
    flights: Flights[int], work: Work, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    await flights.accompany("key")
    (waiter,) = await joined(nursery, flights, work)
    nursery.start_soon(flights.accompany, "key")
    await waiter.leave()
    await pass_time(mock_clock, 2 * GRACE)
    assert (work.runs, work.cancelled) == (1, 0)
    work.error = NotFound("it is not told")
    work.go.set()
    await wait_all_tasks_blocked()
    assert "key" not in flights
