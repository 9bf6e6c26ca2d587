"""WeightedLimiter: never exceeded, never idle, and no key waits for ever."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from imgfs.aio.weighted import WeightedLimiter
from tests.aio.crowd import Crowd

SIZE = 10
WEIGHTS = {"a": 1, "b": 3, "c": 6, "d": 10, "e": 25}


def crowd_of(nursery: trio.Nursery, limiter: WeightedLimiter | None = None) -> Crowd:
    """Return tasks that use one limiter with WEIGHTS."""
    limiter = WeightedLimiter(SIZE) if limiter is None else limiter
    return Crowd(lambda key: limiter.slot(key, WEIGHTS[key]), nursery)


def inside(crowd: Crowd) -> str:
    """Return the keys of the holders, sorted, because keys admitted together have no order."""
    return "".join(sorted(crowd.inside()))


async def test_keys_that_fit_are_admitted_and_the_rest_in_order(nursery: trio.Nursery) -> None:
    crowd = crowd_of(nursery)
    await crowd.come(*"cbda")
    assert inside(crowd) == "bc", "who comes last does not overtake, though he would fit"
    await crowd.go()
    assert inside(crowd) == "b"
    await crowd.go()
    assert inside(crowd) == "d"
    await crowd.go()
    assert inside(crowd) == "a"


async def test_a_key_heavier_than_the_limit_runs_alone(nursery: trio.Nursery) -> None:
    crowd = crowd_of(nursery)
    await crowd.come(*"aea")
    assert inside(crowd) == "aa"
    await crowd.go()
    await crowd.come("b")
    await crowd.go()
    assert inside(crowd) == "e"
    await crowd.go()
    assert inside(crowd) == "b"


async def test_a_key_counts_once_and_may_be_used_again(nursery: trio.Nursery) -> None:
    limiter = WeightedLimiter(SIZE)
    crowd = crowd_of(nursery, limiter)
    await crowd.come(*"ddbd")
    assert inside(crowd) == "ddd"
    assert "d" in limiter
    await crowd.go()
    await crowd.go()
    assert inside(crowd) == "d", "it counts until the last one leaves"
    await crowd.go()
    assert inside(crowd) == "b"
    assert "d" not in limiter


async def test_waiters_of_one_key_are_admitted_together(nursery: trio.Nursery) -> None:
    crowd = crowd_of(nursery)
    await crowd.come(*"dccb")
    await crowd.go()
    assert inside(crowd) == "bcc"


async def test_a_cancelled_waiter_does_not_delay_others(nursery: trio.Nursery) -> None:
    crowd = crowd_of(nursery)
    await crowd.come(*"cdab")
    crowd.waiting[0][1].cancel()
    await wait_all_tasks_blocked()
    assert inside(crowd) == "abc"


async def test_a_waiter_cancelled_during_admission_holds_nothing(nursery: trio.Nursery) -> None:
    crowd = crowd_of(nursery)
    await crowd.come(*"dcb")
    crowd.holding[0][1].cancel()
    crowd.waiting[0][1].cancel()
    await wait_all_tasks_blocked()
    await crowd.come("d")
    assert inside(crowd) == "b"
    await crowd.go()
    assert inside(crowd) == "d"


async def test_a_cancelled_caller_holds_nothing(nursery: trio.Nursery) -> None:
    room = WeightedLimiter(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with room.slot("a", 1):
            pytest.fail("it was cancelled before")
    with trio.fail_after(5):
        async with room.slot("b", 1):
            assert "a" not in room


@given(steps=st.lists(st.tuples(st.sampled_from("abcde+-"), st.integers(0, 30)), max_size=60))
def test_never_exceeded_and_never_idle(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            crowd = crowd_of(nursery)
            for step, number in steps:
                group = crowd.waiting if step == "-" else crowd.holding
                if step in WEIGHTS:
                    await crowd.come(step)
                elif group:
                    group[number % len(group)][1].cancel()
                    await wait_all_tasks_blocked()
                _judge(crowd)
            nursery.cancel_scope.cancel()

    trio.run(run)


def _judge(crowd: Crowd) -> None:
    inside = set(crowd.inside())
    taken = sum(WEIGHTS[key] for key in inside)
    assert taken <= SIZE or len(inside) == 1
    assert not inside.intersection(key for key, _ in crowd.waiting)
    if crowd.waiting:
        assert inside
        assert taken + max(WEIGHTS[key] for key, _ in crowd.waiting) > SIZE, "the first one would fit"
