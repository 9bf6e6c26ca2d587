"""Waits on behalf of a caller: a signal, its end and the daemon's end interrupt them; their number is limited."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest
import trio
import trio.testing

from imgfs.errors import Busy, Interrupted, NotFound, Stopping
from imgfs.fs import caller
from imgfs.fs.caller import Caller, Waiters, is_interrupted


@pytest.fixture
def waiters() -> Waiters:
    return Waiters(trio.Event())


async def test_a_wait_gives_its_result_or_its_error(waiters: Waiters) -> None:
    async def fail() -> None:
        raise NotFound("nothing")

    async def succeed() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    me = Caller(os.getpid(), 0, waiters)
    assert await me.wait(succeed) == 7
    with pytest.raises(NotFound, match="nothing"):
        await me.wait(fail)
    assert waiters.count == 0
    assert sum(waiters.seconds.counts) == 2


async def test_a_process_that_is_gone_waits_no_more(waiters: Waiters) -> None:
    gone = int(await trio.to_thread.run_sync(subprocess.check_output, ["sh", "-c", "echo $$"]))
    with pytest.raises(Interrupted):
        await Caller(gone, 0, waiters).wait(trio.sleep_forever)


async def test_a_file_is_read_on_when_its_opener_is_gone(waiters: Waiters) -> None:
    async def look_twice() -> int:
        await trio.sleep(2 * waiters.poll)  # the process has been checked by then
        return 7

    gone = int(await trio.to_thread.run_sync(subprocess.check_output, ["sh", "-c", "echo $$"]))
    with pytest.raises(Interrupted):
        await Caller(gone, 0, waiters).wait(look_twice)
    assert await Caller(gone, 0, waiters).opener().wait(look_twice) == 7


async def test_the_end_of_the_daemon_answers_every_wait(waiters: Waiters) -> None:
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(Interrupted):
                await Caller(os.getpid(), 0, waiters).wait(trio.sleep_forever)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        waiters.ending.set()
    with pytest.raises(Stopping):
        await Caller(os.getpid(), 0, waiters).wait(trio.sleep_forever)


async def test_a_crowd_is_turned_away_before_it_takes_every_task(
    waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "WAITERS_MAX", 1)
    me = Caller(os.getpid(), 0, waiters)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(me.wait, trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy, match="try again later"):
            await me.wait(trio.sleep_forever)
        nursery.cancel_scope.cancel()


def test_what_counts_as_interrupted() -> None:
    assert not is_interrupted(0)
    assert not is_interrupted(os.getpid())
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert not is_interrupted(os.getpid())
        signal.sigtimedwait([signal.SIGUSR1], 1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
