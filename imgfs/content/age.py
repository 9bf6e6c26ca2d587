"""How long ago something was touched, so that no clock that is set makes it look older than it is.

What this process touched is timed by a clock that nobody sets (CLOCK_BOOTTIME) and by the wall clock, and the younger
answer counts. What an earlier one touched has only its time on disk; one in the future is young.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SECOND = 10**9


def boot_clock() -> int:
    """Ns since the machine was booted, suspended or not."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class LastTouch:
    """When one thing was touched last."""

    __slots__ = ("_boot", "_ticks", "_touched", "_wall")

    def __init__(
        self, touched: int, wall: Callable[[], int] = time.time_ns, boot: Callable[[], int] = boot_clock
    ) -> None:
        """`touched` is what the disk says: ns since the epoch. `wall` and `boot` tell the time in ns."""
        self._touched = touched
        self._ticks: int | None = None
        self._wall = wall
        self._boot = boot

    def now(self) -> None:
        """It is touched now."""
        self._touched, self._ticks = self._wall(), self._boot()

    def age(self) -> float:
        """Seconds since then, at most; not below 0."""
        by_wall = max(0, self._wall() - self._touched)
        age = by_wall if self._ticks is None else min(by_wall, self._boot() - self._ticks)
        return age / _SECOND
