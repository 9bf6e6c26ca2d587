"""Starting the process of a supervisor, ahead of the job that it gets: while it begins, its container is prepared."""

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
from imgfs.execution.control import Connection, keep_only
from imgfs.execution.records.record import InstalledRuntime

_FILES = 64
"""Open files that are enough for whoever has a part in a start: runc takes 20, and one for a terminal more."""


class IdleSupervisor:
    """A supervisor without a job. It ends when nobody holds the other end of its connection."""

    def __init__(self, mountpoint: str, first: Callable[[Connection], bool] | None = None) -> None:
        """Start it, in a session of its own. Raises StorageFailed. `mountpoint` is for people who list processes.

        With `first` it is forked out of this process, which has no other thread and has loaded already what a
        supervisor needs; it does that before it waits for its job, and ends if that says no.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = Connection(ours)
        self.process: subprocess.Popen[bytes] | None = None
        """Where it is a program of its own."""
        with theirs:
            try:
                if first is None:
                    self.process = _called(theirs, mountpoint)
                elif not os.fork():
                    _supervise(theirs, first)
            except OSError as error:
                self.control.close()
                advice = too_many_open(error.errno)
                reason = f"{error.strerror}; {advice}" if advice else error.strerror
                raise StorageFailed(f"a supervisor cannot be started: {reason}") from None


def check_caller() -> None:
    """Raise NotPermitted for an ordinary user, and as `check_files`."""
    if os.geteuid():
        raise NotPermitted("containers: are started by root only; there are no rootless ones")
    check_files()


def check_files() -> None:
    """Raise StorageFailed where this process and its children may not open what supervisor and runtime need at a time.

    Half-way it would be the runtime that says so, and who takes back what was begun needs files for that, too.
    """
    if os.sysconf("SC_OPEN_MAX") < _FILES:
        advice = too_many_open(errno.EMFILE)
        raise StorageFailed(f"containers: {os.strerror(errno.EMFILE)}: starting a program takes {_FILES}; {advice}")


def _called(theirs: socket.socket, mountpoint: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "imgfs.execution.supervisor", str(theirs.fileno()), mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        cwd="/",
        start_new_session=True,
    )


def _supervise(theirs: socket.socket, first: Callable[[Connection], bool]) -> NoReturn:
    """Be a supervisor: with nothing open but the connection, and in nobody's session."""
    try:
        from imgfs.execution.supervisor.life import supervise

        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        keep_only(theirs.fileno())
        connection = Connection(theirs)
        if first(connection):
            supervise(connection)
    finally:
        os._exit(0)


NONE = -1
"""In place of a descriptor: none."""
_DESCRIPTORS = ("lock", "rootfs", "stdin", "stdout", "stderr", "terminal")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One container to run. Descriptors are numbers of the process that has the job."""

    state: str
    id: str
    record: str
    """What the record's directory is called: the id, or a temporary name: then a start that fails leaves nothing."""
    lock: int
    """The record's lock, held."""
    rootfs: int
    """The directory of its files in the tree, by its path alone (O_PATH), so that nobody has to walk there again."""
    stdin: int = NONE
    stdout: int = NONE
    stderr: int = NONE
    """Where what the container writes goes besides the log."""
    terminal: int = NONE
    """A stream socket to whoever has the terminal."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of that terminal."""
    runtimes: list[InstalledRuntime]
    """To be tried in this order."""
    deadline: float
    log_bytes: int
    is_logged: bool

    @property
    def is_new(self) -> bool:
        """Whether it is the container's first start."""
        return self.record != self.id

    def encode(self) -> tuple[bytes, list[int]]:
        """The message, and the files that go with it, in its order."""
        return msgspec.json.encode(self), [one for one in self._descriptors if one != NONE]

    @property
    def _descriptors(self) -> list[int]:
        return [getattr(self, name) for name in _DESCRIPTORS]


def decode_job(data: bytes, files: list[int]) -> Job:
    """The job of a message: its descriptors are those of `files`."""
    job, left = msgspec.json.decode(data, type=Job), iter(files)
    here = {name: next(left) for name in _DESCRIPTORS if getattr(job, name) != NONE}
    return msgspec.structs.replace(job, **here)
