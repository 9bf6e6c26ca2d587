"""Measure how long ago something was used, so that setting a clock never makes it look older than it is.

A use by this process is timed with a clock that cannot be set (CLOCK_BOOTTIME) and with the wall clock; the smaller age
counts. For a use by an earlier process only the wall clock time on disk is known; a time in the future counts as now.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SECOND = 10**9


def boot_clock() -> int:
    """Return nanoseconds since boot, including suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class LastTouch:
    """The time of the last use of one object."""

    __slots__ = ("_boot", "_ticks", "_touched", "_wall")

    def __init__(
        self, touched: int, wall: Callable[[], int] = time.time_ns, boot: Callable[[], int] = boot_clock
    ) -> None:
        """Start from `touched`, the time on disk (ns since the epoch). `wall` and `boot` return the time in ns."""
        self._touched = touched
        self._ticks: int | None = None
        self._wall = wall
        self._boot = boot

    def now(self) -> None:
        """Record a use at this moment."""
        self._touched, self._ticks = self._wall(), self._boot()

    def age(self) -> float:
        """Return the upper limit of the seconds since the last use; never below 0."""
        by_wall = max(0, self._wall() - self._touched)
        age = by_wall if self._ticks is None else min(by_wall, self._boot() - self._ticks)
        return age / _SECOND
