"""Poll the FUSE device briefly before the daemon sleeps.

A process that walks a tree sends its next request microseconds after each answer. Sleeping in trio's event loop and
waking up takes several times as long, so pyfuse3 waits by `wait_readable` below.
"""

from __future__ import annotations

import select
import time
from typing import Any

import pyfuse3
import trio

from imgfs.private_parts import replace_trio

_SOON = 20e-6
"""Seconds of polling. A longer poll would take CPU time from the process that sends the requests."""
IN_A_ROW = 16
"""Requests that may be read in a row before the event loop runs other tasks."""


class _Lowlevel:
    """trio.lowlevel with one replaced function."""

    def __init__(self) -> None:
        self._left = IN_A_ROW
        self._polls: dict[int, select.poll] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        """Wait as trio's function does. It is a checkpoint only if it sleeps, or after MOST_IN_A_ROW requests."""
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
    """The module trio with the replacement of trio.lowlevel."""

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def poll_before_sleeping() -> None:
    """Let pyfuse3 wait by `wait_readable` above, if this version of pyfuse3 looks trio up in its own namespace."""
    replace_trio(pyfuse3, trio, _Trio())
