"""Asking the kernel for its next request once more before the daemon sleeps.

Who walks a tree waits for each answer, and has his next question within microseconds of it. The loop sleeps and is
woken several times as long as that; so pyfuse3 waits by `wait_readable` below.
"""

from __future__ import annotations

import select
import time
from typing import Any

import pyfuse3
import trio

from imgfs.private_parts import replace_trio

_SOON = 20e-6
"""Seconds for which it is asked. Longer would take a processor from who is to ask."""
IN_A_ROW = 16
"""Requests that are taken before all else that is due in the loop has its turn."""


class _Lowlevel:
    """trio.lowlevel, but for one function."""

    def __init__(self) -> None:
        self._left = IN_A_ROW
        self._polls: dict[int, select.poll] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        """As trio's. It is no checkpoint where something comes soon, but for the last one in a row."""
        if self._left and self._is_readable_soon(descriptor):
            self._left -= 1
            return
        self._left = IN_A_ROW
        await trio.lowlevel.wait_readable(descriptor)

    def _is_readable_soon(self, descriptor: int) -> bool:
        asked = self._polls.get(descriptor)
        if asked is None:
            asked = self._polls[descriptor] = select.poll()
            asked.register(descriptor, select.POLLIN)
        end = time.perf_counter() + _SOON
        while not asked.poll(0):
            if time.perf_counter() > end:
                return False
        return True


class _Trio:
    """trio, with that in place of trio.lowlevel."""

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def ask_before_sleeping() -> None:
    """Let pyfuse3 wait by `wait_readable` above, if this version of pyfuse3 looks trio up in its own namespace."""
    replace_trio(pyfuse3, trio, _Trio())
