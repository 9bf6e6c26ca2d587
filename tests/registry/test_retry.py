"""Waits without requests: what Retry-After asks for, and the limit for the rest of one call.

Pauses that other calls caused count towards the limit too.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import RateLimited, RegistryFailed
from imgfs.registry.limits import Limits
from imgfs.registry.retry import Pauses, Tries, retry_after
from imgfs.registry.statistics import HostStatistics


class Crowd:
    """Callers of one host. While one waits, the registry refuses another."""

    def __init__(self, clock: MockClock, refused_again: int) -> None:
        self.pauses = Pauses(self._sleep)
        self.counters = HostStatistics()
        self.tries = Tries(Limits(), self._sleep, self.counters)
        self._clock = clock
        self._refused_again = refused_again

    async def _sleep(self, seconds: float) -> None:
        self._clock.jump(seconds)
        if self._refused_again:
            self._refused_again -= 1
            self.pauses.pause("a.example", 40, RateLimited("somebody else"))
        await trio.lowlevel.checkpoint()


async def test_a_pause_that_others_prolong_for_ever_is_waited_for_a_minute(mock_clock: MockClock) -> None:
    crowd = Crowd(mock_clock, refused_again=100)
    crowd.pauses.pause("a.example", 40, RegistryFailed("somebody else"))
    before = trio.current_time()
    with pytest.raises(RateLimited, match=r"mine: a\.example asks for rest, also after waiting; wait some minutes"):
        await crowd.pauses.wait("a.example", crowd.tries, "mine")
    assert trio.current_time() - before == 60
    assert crowd.counters.failures == {"RateLimited": 1}


async def test_time_waited_for_the_pause_of_other_callers_counts_as_rest(mock_clock: MockClock) -> None:
    crowd = Crowd(mock_clock, refused_again=0)
    crowd.pauses.pause("a.example", 50, RateLimited("somebody else"))
    await crowd.pauses.wait("a.example", crowd.tries, "mine")
    assert crowd.tries.rest(RateLimited("mine"), 60) == 10


async def test_a_caller_after_the_pause_does_not_wait(mock_clock: MockClock) -> None:
    crowd = Crowd(mock_clock, refused_again=0)
    crowd.pauses.pause("a.example", 50, RateLimited("somebody else"))
    mock_clock.jump(50)
    before = trio.current_time()
    await crowd.pauses.wait("a.example", crowd.tries, "mine")
    assert trio.current_time() == before


@pytest.mark.parametrize("value", ["", "soon", "-1", None, "9" * 400, "Fri, 99 Foo 2020"])
def test_random_retry_after_values_are_none_or_a_number(value: str | None) -> None:
    found = retry_after(value)
    assert found is None or found >= 0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(" 17 ") == 17
    later = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True))
    assert later is not None
    assert 500 < later <= 600
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
