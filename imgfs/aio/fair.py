"""Places for which many wait, given by turns among what they wait for: who wants much does not keep others out."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager

import trio


class FairLimiter:
    """`places` for all keys together, in the order of their turns; within a key, in the order of asking.

    A key that holds nothing gets one of `spare` more where all places are taken. So a small image begins at once while
    a large one comes in, unless `spare` others do that already. In one event loop.
    """

    def __init__(self, places: int, spare: int = 0) -> None:
        self._places = places
        self._spare = spare
        self._held: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, deque[trio.Event]] = OrderedDict()
        """Who waits, the key whose turn is next first. Nobody does who may have a place."""

    @asynccontextmanager
    async def place(self, key: Hashable) -> AsyncGenerator[None]:
        """Hold a place as long as the context lasts."""
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def acquire(self, key: Hashable) -> None:
        """Wait for a place. Cancelled, nothing is held."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._may(key):
            self._held[key] += 1
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        given = trio.Event()
        self._waiting.setdefault(key, deque()).append(given)
        try:
            await given.wait()
        except BaseException:
            if given.is_set():
                self.release(key)
            else:
                self._leave(key, given)
            raise

    def release(self, key: Hashable) -> None:
        """Give a place back; the next ones who may have one get it."""
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        while (following := next((one for one in self._waiting if self._may(one)), None)) is not None:
            self._held[following] += 1
            given = self._waiting[following][0]
            self._waiting.move_to_end(following)
            self._leave(following, given)
            given.set()

    def _may(self, key: Hashable) -> bool:
        taken = self._held.total()
        return taken < self._places or (not self._held[key] and taken < self._places + self._spare)

    def _leave(self, key: Hashable, given: trio.Event) -> None:
        self._waiting[key].remove(given)
        if not self._waiting[key]:
            del self._waiting[key]
