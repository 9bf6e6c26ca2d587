"""Single flights: any number of callers of one key share one run of the work, in the daemon's nursery.

A flight runs while it has a waiter, and for a grace period after the last one left. So an interrupted first caller does
not disturb the others, and an abandoned download ends. All waiters get its failure, and it is remembered for a short
time, so a thousand readers of a dead blob make one attempt.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from imgfs.aio.patience import Patience, current_patience
from imgfs.errors import Cancelled, ImgfsError, from_os

T = TypeVar("T")

GRACE = 10.0
MEMORY = 2.0
_REMEMBERED_MAX = 4096

_log = logging.getLogger("imgfs.flight")


@dataclass(slots=True)
class _Flight(Generic[T]):
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    waiters: int = 0
    result: list[T] = field(default_factory=list[T])
    error: ImgfsError | None = None
    patience: Patience | None = field(default_factory=current_patience)
    """That of the request that started the flight: the flight's task spends it."""


class Flights(Generic[T]):
    """Flights of one kind of work. `nursery` must outlive every caller; `grace` and `memory` are seconds."""

    def __init__(self, nursery: trio.Nursery, *, grace: float = GRACE, memory: float = MEMORY) -> None:
        self._nursery = nursery
        self._grace = grace
        self._memory = memory
        self._flying: dict[Hashable, _Flight[T]] = {}
        self._failed: dict[Hashable, tuple[float, ImgfsError]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flying

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for the flight of `key`; start it with `work` if there is none. Return its result.

        Raises the ImgfsError that ended the flight, also if that was up to `memory` seconds ago, unless it is
        Cancelled. Any other exception is logged and becomes an ImgfsError. Cancelling a waiter does not affect the
        flight or other waiters.
        """
        self._raise_remembered(key)
        while (flight := self._flying.get(key)) and flight.scope.cancel_called:
            # The flight was cancelled and is ending: its error is not an answer for a caller that came later.
            await flight.done.wait()
        if flight is None:
            flight = self._flying[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        await self._wait(flight)
        if flight.error is not None:
            raise copy.copy(flight.error)
        return flight.result[0]

    async def accompany(self, key: Hashable) -> None:
        """Wait for the end of the flight of `key`, if there is one, as one of its waiters. Its result is ignored."""
        if flight := self._flying.get(key):
            await self._wait(flight)

    def flying(self) -> list[Hashable]:
        """Return the keys of all flights."""
        return list(self._flying)

    def forget_failure(self, key: Hashable) -> None:
        """Let the next `join` of `key` try again at once."""
        self._failed.pop(key, None)

    def cancel(self, key: Hashable) -> bool:
        """Cancel the flight of `key`; its waiters get Cancelled. Return whether there was one."""
        flight = self._flying.get(key)
        if flight is not None:
            flight.scope.cancel()
        return flight is not None

    def cancel_abandoned(self, key: Hashable) -> bool:
        """Cancel the flight of `key` before the end of its grace period if it has no waiter.

        Return whether it has none.

        Work calls this at a point where it can stop without loss.
        """
        flight = self._flying.get(key)
        if flight is None or flight.waiters:
            return False
        flight.scope.cancel()
        return True

    async def _wait(self, flight: _Flight[T]) -> None:
        flight.waiters += 1
        flight.scope.deadline = math.inf
        mine, theirs = current_patience(), flight.patience
        before = theirs.idle if theirs is not None else 0.0
        try:
            await flight.done.wait()
        finally:
            if mine is not None and theirs is not None and mine is not theirs:
                mine.lost(max(0.0, theirs.idle - before))
            flight.waiters -= 1
            if not flight.waiters:
                flight.scope.deadline = trio.current_time() + self._grace

    async def _fly(self, key: Hashable, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            await self._outcome(flight, work)
        finally:
            if not flight.result and flight.error is None:
                flight.error = Cancelled("the work was cancelled; try again")
            elif flight.error is not None and not isinstance(flight.error, Cancelled):
                self._remember(key, flight.error)
            del self._flying[key]
            flight.done.set()

    async def _outcome(self, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            with flight.scope:
                flight.result.append(await work())
        except ImgfsError as error:
            # The error is remembered. A copy has no traceback, whose frames would keep the work's data alive.
            flight.error = copy.copy(error)
        except OSError as error:
            flight.error = from_os(error, error.filename or "state directory")
        except Exception as error:  # noqa: BLE001
            # A bug in one flight must not end the daemon.
            _log.exception("a flight failed unexpectedly")
            flight.error = ImgfsError(f"internal error: {type(error).__name__}: {error}; see .imgfs/log")

    def _remember(self, key: Hashable, error: ImgfsError) -> None:
        if len(self._failed) >= _REMEMBERED_MAX:
            self._failed.clear()
        self._failed[key] = (trio.current_time() + self._memory, error)

    def _raise_remembered(self, key: Hashable) -> None:
        if remembered := self._failed.get(key):
            until, error = remembered
            if trio.current_time() < until:
                raise copy.copy(error)
            del self._failed[key]
