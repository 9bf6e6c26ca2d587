"""gather and plain_nursery: results in order, one plain error that cancels the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from imgfs.aio.gather import gather, plain_nursery
from imgfs.errors import NotFound


async def value(of: int, before: trio.Event | None = None, after: trio.Event | None = None) -> int:
    if after is not None:
        await after.wait()
    if before is not None:
        before.set()
    return of


async def fail(error: BaseException) -> int:
    raise error


async def together(*works: Callable[[], Awaitable[object]]) -> None:
    async with plain_nursery() as nursery:
        for work in works:
            nursery.start_soon(work)


async def test_results_come_in_the_order_of_the_works_and_not_of_their_ends() -> None:
    second_first = trio.Event()
    assert await gather([partial(value, 1, None, second_first), partial(value, 2, second_first)]) == [1, 2]


async def test_nothing_gathers_to_nothing() -> None:
    nothing: list[Callable[[], Awaitable[int]]] = []
    assert await gather(nothing) == []


async def test_the_first_failure_ends_the_others_and_is_raised_as_itself() -> None:
    error = NotFound("gone")
    with pytest.raises(NotFound) as caught:
        await gather([trio.sleep_forever, partial(fail, error), trio.sleep_forever])
    assert caught.value is error


async def test_two_failures_at_once_are_still_one_plain_error() -> None:
    with pytest.raises(NotFound):
        await gather([partial(fail, NotFound("a")), partial(fail, NotFound("b"))])


async def test_nested_gathers_are_plain_too() -> None:
    with pytest.raises(NotFound):
        await gather([partial(gather, [partial(fail, NotFound("a"))]), trio.sleep_forever])


async def test_cancelling_the_caller_cancels_all() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await gather([trio.sleep_forever] * 3)
    assert scope.cancelled_caught


async def test_a_plain_nursery_lets_a_single_failure_out_as_itself() -> None:
    with pytest.raises(NotFound):
        await together(partial(gather, [partial(fail, NotFound("deep"))]), trio.sleep_forever)
    with pytest.raises(KeyboardInterrupt):
        await together(partial(fail, KeyboardInterrupt()))


async def test_a_plain_nursery_keeps_several_failures_together() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await together(partial(fail, NotFound("a")), partial(fail, ValueError("b")))
    assert {type(one) for one in caught.value.exceptions} == {NotFound, ValueError}
