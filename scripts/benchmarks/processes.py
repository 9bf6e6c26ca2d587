"""Run, start and end programs.

Owns every child of the benchmark, also detached children. It knows no program by name.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

TIMEOUT = 600.0
"""Seconds after which a program counts as hung and is killed."""

KEPT_OUTPUT = 1500
"""Characters of a failed program's output that go into the report."""

_PR_SET_CHILD_SUBREAPER = 36
_running: dict[int, subprocess.Popen[bytes]] = {}


class Failed(Exception):
    """A contestant or server failed. The report shows the message."""


def run(*command: str | Path, timeout: float = TIMEOUT, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return its standard output.

    Output goes to files, not pipes, because a daemon that the program leaves behind may keep pipes open. The end is
    awaited through a pidfd, because `Popen.wait(timeout)` polls and would add up to 50 ms to the measured time.

    Raises Failed with the end of standard error if the program cannot start, exits with a status other than 0, or
    hangs.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = _popen(command, out, err, env)
        try:
            ended = _await_end(child.pid, timeout)
        finally:
            _kill_group_unless_ended(child)
        if not ended:
            raise Failed(f"{_words(command)}: no end after {timeout:.0f} s; {_tail(err)}")
        if child.returncode:
            raise Failed(f"{_words(command)}: exit status {child.returncode}; {_tail(err) or _tail(out)}")
        out.seek(0)
        return out.read().decode(errors="replace")


def start(*command: str | Path, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program that keeps running, with its output in `log`. `stop` ends it, or at the latest `stop_all`."""
    with log.open("ab") as out:
        child = _popen(command, out, out, env)
    _running[child.pid] = child
    return child


def stop(child: subprocess.Popen[bytes], grace: float = 10.0) -> None:
    """End a started program: SIGTERM, then SIGKILL after `grace` seconds."""
    if child.poll() is None:
        child.terminate()
        if not _await_end(child.pid, grace):
            child.kill()
    child.wait()
    _running.pop(child.pid, None)


def stop_all() -> None:
    """End all programs that still run, the newest first, then all detached programs."""
    for child in reversed(list(_running.values())):
        stop(child)
    end_orphans(grace=2.0)


def wait_until(
    ready: Callable[[], bool], what: str, child: subprocess.Popen[bytes], log: Path, timeout: float = 30.0
) -> None:
    """Wait until a started program answers. Raises Failed with the end of its log if it exits or does not answer."""
    deadline = time.monotonic() + timeout
    while not ready():
        if child.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"{what} does not answer; its log ends: {log.read_text(errors='replace')[-KEPT_OUTPUT:]}")
        time.sleep(0.005)


def adopt_orphans() -> None:
    """Become the parent of detached grandchildren (conmon, containerd's shims, imgfs), so that they can be ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(grace: float = 10.0) -> None:
    """Wait `grace` seconds until adopted processes end by themselves, then kill the remaining ones by pid."""
    for sign in (None, signal.SIGTERM, signal.SIGKILL):
        for pid in _orphans():
            if sign is not None:
                os.kill(pid, sign)
        deadline = time.monotonic() + grace
        while _reap_orphans() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not _orphans():
            return


def _reap_orphans() -> bool:
    """Collect ended orphans. Return whether any orphan is still alive."""
    alive = [pid for pid in _orphans() if os.waitpid(pid, os.WNOHANG)[0] == 0]
    return bool(alive)


def _orphans() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    pids = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return sorted(pids - _running.keys())


def _popen(
    command: tuple[str | Path, ...], out: IO[bytes], err: IO[bytes], env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    words = [str(word) for word in command]
    whole = {**os.environ, **(env or {})}
    try:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=whole, start_new_session=True
        )
    except OSError as error:
        raise Failed(f"{_words(command)}: cannot start: {error}") from error


def _await_end(pid: int, timeout: float) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)


def _kill_group_unless_ended(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _words(command: tuple[str | Path, ...]) -> str:
    """Return a command for a message; a long command is shortened to the program and the end."""
    text = " ".join(str(word) for word in command)
    return text if len(text) <= 200 else f"{command[0]} ... {text[-150:]}"


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace").strip()[-KEPT_OUTPUT:]
