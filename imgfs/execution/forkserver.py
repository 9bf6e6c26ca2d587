"""The daemon's side of the starter (imgfs.forkserver.server): its socket, and its process when somebody comes.

The process begins with the first one who connects, who waits for it, and ends some time after the last one. It is
handed nothing of the daemon but the socket, and what it starts goes on without either.
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

from imgfs.execution.control import listening_at

SOCKET = "forkserver"
"""Its name in the state directory; only the daemon's user can connect."""
_log = logging.getLogger("imgfs.execution")


async def run_fork_server(state: Path, mountpoint: Path) -> None:
    """Have a starter whenever somebody asks for one, until this is cancelled. One that fails is not tried again.

    Nothing depends on it: who finds nobody there does himself what he would have asked for.
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
    with listening_at(path) as listener:
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


async def _attend(listener: socket.socket, mountpoint: Path) -> int:
    """Run a starter to its end; its exit code."""
    process = await trio.to_thread.run_sync(_start, listener, mountpoint)
    try:
        ended = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(ended)
        finally:
            os.close(ended)
    finally:
        process.kill()  # it holds nothing that has to be put back
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
