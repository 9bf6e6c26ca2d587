"""FairLimiter: keys take turns, and no slot is lost by a cancellation."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from imgfs.aio.fair import FairLimiter
from tests.aio.crowd import Crowd


async def test_keys_take_turns(nursery: trio.Nursery) -> None:
    crowd = Crowd(FairLimiter(2).slot, nursery)
    await crowd.come(*"aaaaaabbc")
    assert crowd.inside() == "aa"
    order = ""
    while crowd.holding:
        await crowd.go()
        order += crowd.inside()[-1:] if len(crowd.inside()) == 2 else ""
    assert order == "abcabaa"


async def test_a_key_without_a_slot_gets_a_spare_one(nursery: trio.Nursery) -> None:
    crowd = Crowd(FairLimiter(2, spare=1).slot, nursery)
    await crowd.come(*"aaab")
    assert crowd.inside() == "aab"
    await crowd.come("c")
    assert crowd.inside() == "aab"
    await crowd.go(2)
    assert crowd.inside() == "aac"
    await crowd.go(2)
    assert crowd.inside() == "aa", "a spare place is not for who has one"


async def test_a_cancelled_waiter_does_not_delay_others(nursery: trio.Nursery) -> None:
    crowd = Crowd(FairLimiter(1).slot, nursery)
    await crowd.come(*"abb")
    crowd.waiting[0][1].cancel()
    await wait_all_tasks_blocked()
    await crowd.go()
    assert crowd.inside() == "b"


async def test_a_slot_of_a_cancelled_waiter_is_passed_on(nursery: trio.Nursery) -> None:
    crowd = Crowd(FairLimiter(1).slot, nursery)
    await crowd.come(*"abc")
    crowd.holding[0][1].cancel()
    crowd.waiting[0][1].cancel()
    await wait_all_tasks_blocked()
    assert crowd.inside() == "c"


async def test_a_cancelled_caller_holds_nothing(nursery: trio.Nursery) -> None:
    limiter = FairLimiter(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await limiter.acquire("a")
    with trio.fail_after(5):
        await limiter.acquire("b")


@pytest.mark.parametrize("spare", [0, 2])
@given(steps=st.lists(st.tuples(st.sampled_from("abcd+-"), st.integers(0, 30)), max_size=60))
def test_slots_are_never_exceeded_and_never_idle(spare: int, steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            crowd = Crowd(FairLimiter(3, spare).slot, nursery)
            for step, number in steps:
                group = crowd.waiting if step == "-" else crowd.holding
                if step in "abcd":
                    await crowd.come(step)
                elif group:
                    group[number % len(group)][1].cancel()
                    await wait_all_tasks_blocked()
                _judge(crowd, spare)
            nursery.cancel_scope.cancel()

    trio.run(run)


def _judge(crowd: Crowd, spare: int) -> None:
    held = Counter(crowd.inside())
    assert held.total() <= 3 + spare
    waiting = {key for key, _ in crowd.waiting}
    assert not waiting or held.total() >= 3
    assert held.total() == 3 + spare or not waiting.difference(held)
