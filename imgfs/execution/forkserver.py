"""The daemon's side of the fork server (imgfs.forkserver.server): its socket and its process.

The daemon starts the process when the first caller connects; that caller waits for it. The process exits some time
after the last command. It gets nothing from the daemon but the socket, and the containers that it starts need neither
process.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from imgfs.execution.control import listen_at

SOCKET = "forkserver"
"""Name of the socket in the state directory. Only the daemon's user can connect."""
_log = logging.getLogger("imgfs.execution")


async def run_fork_server(state: Path, mountpoint: Path) -> None:
    """Run a fork server whenever a caller connects, until cancelled.

    After a failure the fork server is not started again.

    The fork server is optional: a caller that cannot reach it runs its command itself.
    """
    try:
        with _offered(state / SOCKET) as listener:
            code = 0
            while not code:
                await trio.lowlevel.wait_readable(listener)
                code = await _attend(listener, mountpoint)
        _log.warning("the fork server failed; containers start without it, more slowly", extra={"exit_code": code})
    except OSError as error:
        _log.warning(
            "the fork server is unavailable; containers start without it, more slowly", extra={"reason": str(error)}
        )


@contextmanager
def _offered(path: Path) -> Generator[socket.socket]:
    with listen_at(path) as listener:
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


async def _attend(listener: socket.socket, mountpoint: Path) -> int:
    """Run one fork server process to its end and return its exit code."""
    process = await trio.to_thread.run_sync(_start, listener, mountpoint)
    try:
        ended = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(ended)
        finally:
            os.close(ended)
    finally:
        process.kill()  # the process holds no state that needs a clean shutdown
        code = process.wait()
        if process.stdin:
            process.stdin.close()
    return code


def _start(listener: socket.socket, mountpoint: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "imgfs.forkserver.server", str(listener.fileno()), mountpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        cwd="/",
        start_new_session=True,
    )
