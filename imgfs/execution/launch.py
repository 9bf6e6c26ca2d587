"""Starts a supervisor process and defines the job that it is given.

The process starts before its job is known, so that it loads while the container is prepared.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec

from imgfs.errors import NotPermitted, StorageFailed, too_many_open
from imgfs.execution.control import Connection, close_all_but
from imgfs.execution.records.record import InstalledRuntime

_FILES = 64
"""Open files that each process of a start needs at most: runc opens 20, and one more for a terminal."""


class IdleSupervisor:
    """A supervisor without a job. It exits when the other end of its connection is closed."""

    def __init__(self, mountpoint: str, first: Callable[[Connection], bool] | None = None) -> None:
        """Start the supervisor in its own session. Raises StorageFailed. `mountpoint` only appears in process listings.

        With `first` the supervisor is forked from this process, which must have no other thread and has already loaded
        the supervisor's modules. The supervisor calls `first` before it waits for its job and exits if `first` returns
        False.
        """
        own_end, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = Connection(own_end)
        self.process: subprocess.Popen[bytes] | None = None
        """Set if the supervisor is a program of its own, and not forked."""
        with other_end:
            try:
                if first is None:
                    self.process = _start_program(other_end, mountpoint)
                elif not os.fork():
                    _supervise(other_end, first)
            except OSError as error:
                self.control.close()
                advice = too_many_open(error.errno)
                reason = f"{error.strerror}; {advice}" if advice else error.strerror
                raise StorageFailed(f"a supervisor cannot be started: {reason}") from None


def check_caller() -> None:
    """Raise NotPermitted unless the caller is root. Raises the errors of `check_files`."""
    if os.geteuid():
        raise NotPermitted("containers: only root can start them; there are no rootless containers")
    check_files()


def check_files() -> None:
    """Raise StorageFailed if the limit of open files is too low for a supervisor and a runtime.

    Without this check the runtime fails half-way, and cleaning up needs open files, too.
    """
    if os.sysconf("SC_OPEN_MAX") < _FILES:
        advice = too_many_open(errno.EMFILE)
        raise StorageFailed(
            f"containers: {os.strerror(errno.EMFILE)}: starting a program needs {_FILES} open files; {advice}"
        )


def _start_program(other_end: socket.socket, mountpoint: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "imgfs.execution.supervisor", str(other_end.fileno()), mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[other_end.fileno()],
        cwd="/",
        start_new_session=True,
    )


def _supervise(other_end: socket.socket, first: Callable[[Connection], bool]) -> NoReturn:
    """Be a supervisor in its own session, with only the connection open."""
    try:
        from imgfs.execution.supervisor.life import supervise

        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        close_all_but(other_end.fileno())
        connection = Connection(other_end)
        if first(connection):
            supervise(connection)
    finally:
        os._exit(0)


NONE = -1
"""Stands for a descriptor that is not given."""
_DESCRIPTORS = ("lock", "rootfs", "stdin", "stdout", "stderr", "terminal")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One container to run. Descriptors are numbers in the process that holds the job."""

    state: str
    id: str
    record: str
    """Name of the record's directory: the ID, or a temporary name for a new container, so that a failed start leaves
    nothing.
    """
    lock: int
    """The record's lock, held."""
    rootfs: int
    """The container's rootfs in the tree, opened with O_PATH, so that the supervisor does not walk its path again."""
    stdin: int = NONE
    stdout: int = NONE
    stderr: int = NONE
    """The caller's streams: the container's input, and where its output goes besides the log."""
    terminal: int = NONE
    """A stream socket to the process that has the terminal."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of that terminal."""
    runtimes: list[InstalledRuntime]
    """The runtimes to try, in this order."""
    deadline: float
    log_bytes: int
    is_logged: bool

    @property
    def is_new(self) -> bool:
        """Whether this is the container's first start."""
        return self.record != self.id

    def encode(self) -> tuple[bytes, list[int]]:
        """Return the message and the files to send with it, in order."""
        return msgspec.json.encode(self), [one for one in self._descriptors if one != NONE]

    @property
    def _descriptors(self) -> list[int]:
        return [getattr(self, name) for name in _DESCRIPTORS]


def decode_job(data: bytes, files: list[int]) -> Job:
    """Decode the job of a message. Its descriptors become those of `files`."""
    job, left = msgspec.json.decode(data, type=Job), iter(files)
    here = {name: next(left) for name in _DESCRIPTORS if getattr(job, name) != NONE}
    return msgspec.structs.replace(job, **here)
