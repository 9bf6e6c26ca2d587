"""Run an async library for blocking tests: in a trio event loop in its own thread."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Portal(Generic[T]):
    """`opened` is entered on the loop as this is entered, and left as this is left; `value` is what it gave."""

    value: T

    def __init__(self, opened: AbstractAsyncContextManager[T]) -> None:
        self._opened = opened
        self._is_ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Portal[T]:
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.call_now(self._closing.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def call(self, function: Callable[[*Ts], Awaitable[R]], *arguments: *Ts) -> R:
        """Await it on the event loop."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def call_now(self, function: Callable[[*Ts], R], *arguments: *Ts) -> R:
        """Call it on the event loop."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            self._failure = error
        finally:
            self._is_ready.set()

    async def _serve(self) -> None:
        self._token, self._closing = trio.lowlevel.current_trio_token(), trio.Event()
        async with self._opened as self.value:
            self._is_ready.set()
            await self._closing.wait()
