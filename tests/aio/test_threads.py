"""Worker threads: results, errors, cancellation that waits, and limiters that do not delay each other."""

from __future__ import annotations

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imgfs.aio import threads
from imgfs.aio.threads import run_cpu, run_disk
from imgfs.errors import NotFound

RUNNERS = pytest.mark.parametrize("run", [run_cpu, run_disk])


def fail() -> None:
    raise NotFound("gone")


@RUNNERS
async def test_a_call_runs_elsewhere_and_returns_or_raises_as_it_does(run: object) -> None:
    assert callable(run)
    assert await run(lambda a, b: (a + b, threading.get_ident()), 1, 2) != (3, threading.get_ident())
    with pytest.raises(NotFound):
        await run(fail)


@RUNNERS
async def test_cancellation_waits_for_the_thread(run: object) -> None:
    assert callable(run)
    done: list[bool] = []

    with trio.CancelScope() as scope:

        def work() -> None:
            trio.from_thread.run_sync(scope.cancel)
            done.append(True)

        await run(work)
    assert done == [True]


async def test_a_disk_that_hangs_does_not_hold_up_hashes(nursery: trio.Nursery) -> None:
    stuck = threading.Event()
    tokens = int(threads._DISK.total_tokens)
    for _ in range(tokens + 5):
        nursery.start_soon(run_disk, stuck.wait)
    await wait_all_tasks_blocked(0.01)
    try:
        assert await run_cpu(lambda: 7) == 7
    finally:
        stuck.set()
