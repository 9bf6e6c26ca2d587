"""Places for what differs in weight, given in the order of asking: what is under way at once is bounded in sum."""

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
    """`size` of anything for all keys together. A key has its weight once, however many use it at a time.

    A key that is heavier than all of it gets in when nobody else is there, so none waits for ever; and nobody who comes
    later gets in before it. Who uses a key may come in once more under the same key without waiting. In one event loop.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._inside: dict[Hashable, _Share] = {}
        self._waiting: OrderedDict[Hashable, tuple[_Share, list[trio.Event]]] = OrderedDict()
        """Who waits, the first who came first. The first one does not fit."""

    def __contains__(self, key: Hashable) -> bool:
        """Whether somebody uses `key`."""
        return key in self._inside

    @asynccontextmanager
    async def place(self, key: Hashable, weight: int) -> AsyncGenerator[None]:
        """Use `key`, of that weight, as long as the context lasts. Cancelled while it waits, it holds nothing."""
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
        """Somebody waits no more: who came behind may be the first now."""
        if not self._waiting[key][1]:
            del self._waiting[key]
            self._admit_first()

    def _admit_first(self) -> None:
        while self._waiting and self._admit(next(iter(self._waiting))):
            pass

    def _admit(self, key: Hashable) -> bool:
        """Let all in who wait for `key`, if it is inside already, or first and fits. Returns whether it was so."""
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
