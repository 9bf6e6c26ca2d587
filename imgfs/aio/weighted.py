"""A limiter for work of different weights, in order of arrival: the sum of the weights in progress is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(slots=True)
class _Share:
    weight: int
    users: int = 0


class WeightedLimiter:
    """Slots of total weight `size`, shared by all keys. A key counts once, however many tasks use it at a time.

    A key that is heavier than `size` is admitted when no other key is in use, so it never waits for ever; later keys
    are not admitted before it. A further user of an admitted key enters without waiting. For one event loop.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._inside: dict[Hashable, _Share] = {}
        self._waiting: OrderedDict[Hashable, tuple[_Share, list[trio.Event]]] = OrderedDict()
        """Waiters by key, in order of arrival. Invariant: the first one does not fit."""

    def __contains__(self, key: Hashable) -> bool:
        """Whether `key` is in use."""
        return key in self._inside

    @asynccontextmanager
    async def slot(self, key: Hashable, weight: int) -> AsyncGenerator[None]:
        """Use `key`, of that weight, in this context. A cancelled waiter holds nothing."""
        await self._enter(key, weight)
        try:
            yield
        finally:
            self._leave(key)

    async def _enter(self, key: Hashable, weight: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        _, given = self._waiting.setdefault(key, (self._inside.get(key) or _Share(weight), []))
        mine = trio.Event()
        given.append(mine)
        self._admit(key)
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                self._leave(key)
            else:
                given.remove(mine)
                self._forget(key)
            raise

    def _leave(self, key: Hashable) -> None:
        share = self._inside[key]
        share.users -= 1
        if not share.users:
            del self._inside[key]
            self._taken -= share.weight
        self._admit_first()

    def _forget(self, key: Hashable) -> None:
        """Remove a cancelled waiter; the next key may be the first now."""
        if not self._waiting[key][1]:
            del self._waiting[key]
            self._admit_first()

    def _admit_first(self) -> None:
        while self._waiting and self._admit(next(iter(self._waiting))):
            pass

    def _admit(self, key: Hashable) -> bool:
        """Admit all waiters of `key` if it is in use already, or is first and fits.

        Return whether they were admitted.
        """
        share, given = self._waiting[key]
        if key not in self._inside:
            is_first = next(iter(self._waiting)) == key
            if not is_first or (self._inside and self._taken + share.weight > self._size):
                return False
            self._inside[key] = share
            self._taken += share.weight
        share.users += len(given)
        del self._waiting[key]
        for one in given:
            one.set()
        return True
