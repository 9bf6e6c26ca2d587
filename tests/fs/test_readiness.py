"""Polling for the kernel's next request: no sleep if a request is pending, and other tasks still run."""

from __future__ import annotations

import os
from collections.abc import Generator

import pyfuse3
import pytest
import trio
import trio.testing

from imgfs.fs import readiness
from imgfs.fs.readiness import poll_before_sleeping


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)  # restored after the test
    poll_before_sleeping()


@pytest.fixture
def pipe() -> Generator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def wait_readable(descriptor: int) -> None:
    """Wait as pyfuse3 does."""
    await vars(pyfuse3)["trio"].lowlevel.wait_readable(descriptor)


async def test_what_is_there_is_taken_at_once(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"request")
    with trio.testing.assert_no_checkpoints():
        await wait_readable(pipe[0])


async def test_others_have_their_turn_while_requests_come_without_end(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"request")
    turns: list[int] = []

    async def other() -> None:
        turns.append(len(taken))

    taken: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        while not turns:
            await wait_readable(pipe[0])
            taken.append(1)
    assert turns[0] < 2 * (readiness.IN_A_ROW + 1)  # trio chooses at random which of two tasks runs first


async def test_it_sleeps_until_there_is_something(pipe: tuple[int, int]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        os.write(pipe[1], b"request")
    assert os.read(pipe[0], 7) == b"request"


async def test_who_waits_hears_that_the_device_is_closed(pipe: tuple[int, int]) -> None:
    heard: list[bool] = []

    async def wait() -> None:
        try:
            await wait_readable(pipe[0])
        except vars(pyfuse3)["trio"].ClosedResourceError:
            heard.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(pipe[0])
    assert heard


async def test_the_rest_is_trios_own() -> None:
    seen = vars(pyfuse3)["trio"]
    assert seen.Lock is trio.Lock
    assert seen.lowlevel.current_trio_token() is trio.lowlevel.current_trio_token()
