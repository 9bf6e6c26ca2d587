"""A limiter that admits keys in turn, so that a key with many waiters does not keep others out."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager

import trio


class FairLimiter:
    """`slots` shared by all keys. Keys are admitted in turn; within a key, in order of arrival.

    If all slots are taken, a key that holds none may take one of `spare` more. So a small image begins at once beside a
    large one, unless `spare` others did that already. For one event loop.
    """

    def __init__(self, slots: int, spare: int = 0) -> None:
        self._slots = slots
        self._spare = spare
        self._held: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, deque[trio.Event]] = OrderedDict()
        """Waiters by key, in turn order. Invariant: no waiter that could be admitted is in this queue."""

    @asynccontextmanager
    async def slot(self, key: Hashable) -> AsyncGenerator[None]:
        """Hold a slot in this context."""
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def acquire(self, key: Hashable) -> None:
        """Wait for a slot. A cancelled waiter holds nothing."""
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
        """Give a slot back and admit waiters."""
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
        return taken < self._slots or (not self._held[key] and taken < self._slots + self._spare)

    def _leave(self, key: Hashable, given: trio.Event) -> None:
        self._waiting[key].remove(given)
        if not self._waiting[key]:
            del self._waiting[key]
