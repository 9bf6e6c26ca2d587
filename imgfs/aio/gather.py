"""Run several awaitables concurrently and raise one plain error instead of an exception group."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import trio

T = TypeVar("T")


async def gather(works: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all of `works` concurrently and return their results in order.

    The first exception cancels the others and is raised as itself. Cancelling the caller cancels all.
    """
    results: dict[int, T] = {}
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def run(position: int, work: Callable[[], Awaitable[T]]) -> None:
            try:
                results[position] = await work()
            except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery's group
                failures.append(error)
                nursery.cancel_scope.cancel()

        for position, work in enumerate(works):
            nursery.start_soon(run, position, work)
    if failures:
        raise failures[0]
    return [results[position] for position in sorted(results)]


@asynccontextmanager
async def plain_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery that raises a single failure as itself, without an exception group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        leaf = _only_leaf(group)
        if leaf is None:
            raise
        raise leaf from None


def _only_leaf(error: BaseException) -> BaseException | None:
    """Return the only exception in nested groups; None if there are several."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = cast("tuple[BaseException, ...]", error.exceptions)  # pyright: ignore[reportUnknownMemberType]
    return _only_leaf(found[0]) if len(found) == 1 else None
