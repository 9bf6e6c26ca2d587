"""Messages to the service manager: ready, alive while the event loop runs, stopping, why a start failed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from imgfs.errors import Busy
from imgfs.notify import Manager

PATIENCE = 10.0


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager. `environment` returns the variables that it sets for its services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(
            f"\0imgfs-test-{os.getpid()}-{time.monotonic_ns()}" if request.param == "abstract" else f"{tmp_path}/n"
        )
        one.settimeout(PATIENCE)
        yield one


def environment(listener: socket.socket, **more: str) -> dict[str, str]:
    name = listener.getsockname()
    address = f"@{name[1:].decode()}" if isinstance(name, bytes) else name
    return {"NOTIFY_SOCKET": address, "HOME": "/", **more}


async def heard(listener: socket.socket) -> list[str]:
    return (await trio.to_thread.run_sync(listener.recv, 4096)).decode().split("\n")


async def test_ready_watchdog_and_stopping_messages_are_sent(listener: socket.socket) -> None:
    answering, ending = trio.Event(), trio.Event()
    manager = Manager.of(environment(listener, WATCHDOG_USEC="90000", WATCHDOG_PID=str(os.getpid())))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.attend, answering, ending, "/m")
        for _ in range(3):
            assert await heard(listener) == ["WATCHDOG=1"]
        answering.set()
        while (told := await heard(listener)) == ["WATCHDOG=1"]:
            pass
        assert told == ["READY=1", "STATUS=Serving /m"]
        assert await heard(listener) == ["WATCHDOG=1"]
        ending.set()
        while (told := await heard(listener)) == ["WATCHDOG=1"]:
            pass
        assert told == ["STOPPING=1", "STATUS=Unmounting /m"]
        assert await heard(listener) == ["WATCHDOG=1"]
        nursery.cancel_scope.cancel()


async def test_a_blocked_event_loop_sends_no_watchdog_messages(listener: socket.socket) -> None:
    manager = Manager.of(environment(listener, WATCHDOG_USEC="30000"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.attend, trio.Event(), trio.Event(), "/m")
        assert await heard(listener) == ["WATCHDOG=1"]
        hold_the_loop(0.05)
        drain(listener)  # messages that were already sent
        hold_the_loop(0.1)
        assert drain(listener) == 0
        nursery.cancel_scope.cancel()


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def drain(listener: socket.socket) -> int:
    """Receive all pending messages and return their number."""
    listener.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while listener.recv(4096):
            count += 1
    return count


@pytest.mark.parametrize("more", [{"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}])
async def test_without_a_valid_watchdog_for_this_process_no_watchdog_messages_are_sent(
    listener: socket.socket, more: dict[str, str]
) -> None:
    answering, ending = trio.Event(), trio.Event()
    answering.set()
    ending.set()
    await Manager.of(environment(listener, **more)).attend(answering, ending, "/m")
    assert (await heard(listener))[0] == "READY=1"
    assert (await heard(listener))[0] == "STOPPING=1"


def test_the_variables_of_the_manager_are_removed_from_the_environment(listener: socket.socket) -> None:
    given = environment(listener, WATCHDOG_USEC="1", WATCHDOG_PID="1")
    Manager.of(given)
    assert given == {"HOME": "/"}


def test_a_failed_start_is_reported_in_one_line(listener: socket.socket) -> None:
    Manager.of(environment(listener)).failed(Busy("/state: is in use\nby another"))
    assert listener.recv(4096) == b"STATUS=/state: is in use by another\nERRNO=16"


async def test_a_missing_or_unreachable_manager_raises_no_error(tmp_path: Path) -> None:
    happened = trio.Event()
    happened.set()
    for manager in (Manager(), Manager.of({"NOTIFY_SOCKET": str(tmp_path / "gone")})):
        await manager.attend(happened, happened, "/m")
        manager.failed(Busy("why"))
