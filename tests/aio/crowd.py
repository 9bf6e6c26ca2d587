"""Tasks that wait for slots of a limiter, hold them and release them, controlled by a test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio
from trio.testing import wait_all_tasks_blocked


class Crowd:
    """Tasks that acquire slots and release them on request."""

    def __init__(self, place: Callable[[str], AbstractAsyncContextManager[None]], nursery: trio.Nursery) -> None:
        self._place = place
        self.nursery = nursery
        self.holding: list[tuple[str, trio.CancelScope]] = []
        self.waiting: list[tuple[str, trio.CancelScope]] = []

    async def come(self, *keys: str) -> None:
        for key in keys:
            scope = trio.CancelScope()
            self.waiting.append((key, scope))
            self.nursery.start_soon(self._hold, key, scope)
            await wait_all_tasks_blocked()

    async def go(self, number: int = 0) -> None:
        """Make one holder of the key release its slot."""
        self.holding[number][1].cancel()
        await wait_all_tasks_blocked()

    def inside(self) -> str:
        """The keys of the holders, in the order of admission."""
        return "".join(key for key, _ in self.holding)

    async def _hold(self, key: str, scope: trio.CancelScope) -> None:
        me = key, scope
        with scope:
            try:
                async with self._place(key):
                    self.waiting.remove(me)
                    self.holding.append(me)
                    await trio.sleep_forever()
            finally:
                (self.holding if me in self.holding else self.waiting).remove(me)
