"""The age of objects when the wall clock is set."""

from __future__ import annotations

from imgfs.content.age import LastTouch

DAY = 86400
_SECOND = 10**9


class Clocks:
    """A wall clock that can be set, and a clock that cannot."""

    def __init__(self) -> None:
        self.wall = 1_000_000 * DAY * _SECOND
        self.boot = 0

    def go_on(self, days: int) -> None:
        self.wall += days * DAY * _SECOND
        self.boot += days * DAY * _SECOND

    def touched(self, days_ago: int = 0) -> LastTouch:
        """Return an object that an earlier process used."""
        return LastTouch(self.wall - days_ago * DAY * _SECOND, lambda: self.wall, lambda: self.boot)


def test_age_grows_with_time() -> None:
    clocks = Clocks()
    before, now = clocks.touched(days_ago=3), clocks.touched()
    now.now()
    clocks.go_on(2)
    assert (before.age(), now.age()) == (5 * DAY, 2 * DAY)
    before.now()
    assert before.age() == 0


def test_setting_the_clock_does_not_increase_the_age() -> None:
    clocks = Clocks()
    clocks.wall -= 365 * DAY * _SECOND
    touched = clocks.touched()
    touched.now()  # while the wall clock is behind
    clocks.wall += 365 * DAY * _SECOND
    clocks.go_on(1)
    assert touched.age() == DAY


def test_a_time_in_the_future_counts_as_now() -> None:
    clocks = Clocks()
    before, here = clocks.touched(), clocks.touched()
    here.now()
    clocks.go_on(10)
    clocks.wall -= 365 * DAY * _SECOND
    assert (before.age(), here.age()) == (0, 0)
