"""Single flights: however many ask for one key, the work runs once, in the daemon's nursery and not in an asker's task.

A flight lives while somebody waits for it and for a grace after the last one left, so an interrupted first reader harms
nobody and an abandoned download ends. Its failure is shared by all waiters and remembered for a moment, so a thousand
readers of a dead blob make one attempt.
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
    """Flights of one kind of work. `nursery` outlives every caller; `grace` and `memory` are seconds."""

    def __init__(self, nursery: trio.Nursery, *, grace: float = GRACE, memory: float = MEMORY) -> None:
        self._nursery = nursery
        self._grace = grace
        self._memory = memory
        self._flying: dict[Hashable, _Flight[T]] = {}
        self._failed: dict[Hashable, tuple[float, ImgfsError]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flying

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for the flight of `key`, starting it with `work` if there is none.

        Raises the ImgfsError the flight ended with (any other exception is logged and becomes one), also when that
        was up to `memory` seconds ago, unless it is Cancelled. Cancelling a waiter leaves the flight and the other
        waiters alone.
        """
        self._raise_remembered(key)
        while (flight := self._flying.get(key)) and flight.scope.cancel_called:
            # It is on its way out: what ends it is no answer to somebody who came later.
            await flight.done.wait()
        if flight is None:
            flight = self._flying[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        await self._wait(flight)
        if flight.error is not None:
            raise copy.copy(flight.error)
        return flight.result[0]

    async def accompany(self, key: Hashable) -> None:
        """Wait for the end of the flight of `key`, if there is one, as one of those it is for; whatever comes of it."""
        if flight := self._flying.get(key):
            await self._wait(flight)

    def flying(self) -> list[Hashable]:
        """The keys of all flights."""
        return list(self._flying)

    def forget_failure(self, key: Hashable) -> None:
        """Let the next `join` of `key` try again at once."""
        self._failed.pop(key, None)

    def cancel(self, key: Hashable) -> bool:
        """End the flight of `key`; its waiters get Cancelled. Returns whether there was one."""
        flight = self._flying.get(key)
        if flight is not None:
            flight.scope.cancel()
        return flight is not None

    def cancel_abandoned(self, key: Hashable) -> bool:
        """End the flight of `key` before its grace is over, if nobody waits for it. Returns whether nobody does.

        Work that calls this where it can stop at no loss need not be torn off in the middle.
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
                flight.error = Cancelled("what was waited for was cancelled; ask for it again")
            elif flight.error is not None and not isinstance(flight.error, Cancelled):
                self._remember(key, flight.error)
            del self._flying[key]
            flight.done.set()

    async def _outcome(self, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            with flight.scope:
                flight.result.append(await work())
        except ImgfsError as error:
            # Without its traceback, whose frames have all that the work had: it is remembered.
            flight.error = copy.copy(error)
        except OSError as error:
            flight.error = from_os(error, error.filename or "state directory")
        except Exception as error:  # noqa: BLE001
            # A bug in one piece of work must end that, and not the daemon that serves all the others.
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
