"""The three streams of a container, or its terminal: made before the runtime is called, moved until they end."""

from __future__ import annotations

import errno
import os
import socket
import termios
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from imgfs.errors import TimedOut
from imgfs.execution.descriptors import address, opened
from imgfs.execution.job import NONE, Job
from imgfs.execution.records.records import Record
from imgfs.execution.supervisor.output import Log, Outlet, Pump

Sink = Callable[[bytes], None]
_CONSOLE = "console"
_CONSOLE_SECONDS = 10.0


class Streams(Protocol):
    """Either kind."""

    @property
    def stdio(self) -> Sequence[int]:
        """The descriptors that the runtime passes on to the process."""
        ...

    @property
    def console(self) -> str | None:
        """The socket that the runtime sends the terminal to."""
        ...

    def complaint(self) -> str:
        """What a runtime that failed said on the way that is to be the container's; it is said no more."""
        ...

    def begin(self) -> None:
        """Start moving; the runtime has done its work. Raises TimedOut, OSError."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        ...

    def first(self) -> str:
        """What came first on the way of errors; the container has ended."""
        ...

    def end(self) -> None:
        """Return when all that was written is where it should be."""
        ...

    def abandon(self) -> None:
        """Let go of everything; the container was never made."""
        ...


def streams_of(job: Job, record: Record, log: Log | None) -> Streams:
    """The streams that a job wants."""
    if record.container().tty:
        return _Terminal(job, record, log)
    return _Pipes(job, log)


class _Pipes:
    """stdin is passed on as it is, so its end and its speed are those of the real one; the others go through pipes."""

    console = None

    def __init__(self, job: Job, log: Log | None) -> None:
        self._log = log
        self._sinks = [None if one == NONE else Outlet(one) for one in (job.stdout, job.stderr)]
        ours, out = os.pipe()
        self._sources: Sequence[int] = (ours,)
        if self._sinks == [None, None]:  # through one pipe, so that they stay in order
            err = os.dup(out)
        else:
            errors, err = os.pipe()
            self._sources = (ours, errors)
        stdin = job.stdin if job.stdin != NONE else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.stdio: Sequence[int] = (stdin, out, err)
        self._pumps: list[Pump] = []

    def complaint(self) -> str:
        return " ".join(_taken(source) for source in self._sources).strip()

    def begin(self) -> None:
        sources, self._sources = self._sources, ()
        self._pumps = [Pump(source, *self._to(sink)) for source, sink in zip(sources, self._sinks, strict=False)]
        self.abandon()  # the other ends are the container's alone, or they would have no end

    def resize(self, rows: int, columns: int) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def first(self) -> str:
        return self._pumps[-1].first().decode(errors="replace").strip()

    def end(self) -> None:
        for pump in self._pumps:
            pump.join()
        for sink in filter(None, self._sinks):
            sink.close()

    def abandon(self) -> None:
        descriptors, self.stdio, self._sources = (*self.stdio, *self._sources), (), ()
        for descriptor in descriptors:
            os.close(descriptor)

    def _to(self, sink: Outlet | None) -> list[Sink]:
        log: list[Sink] = [self._log.write] if self._log else []
        return log if sink is None else [*log, sink]


class _Terminal:
    """The runtime makes a terminal and sends its other side, which is moved to and from a socket."""

    def __init__(self, job: Job, record: Record, log: Log | None) -> None:
        self._job = job
        self._log = log
        self._record = record
        self._held = ExitStack()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._said, saying = os.pipe()
        for descriptor in (null, self._said, saying):
            self._held.callback(os.close, descriptor)
        self.stdio: Sequence[int] = (null, null, saying)
        self._listener = socket.socket(socket.AF_UNIX)
        self._held.callback(self._listener.close)
        directory = self._held.enter_context(opened(record.path))
        self.console: str | None = address(directory, _CONSOLE)
        _unlink(record.path / _CONSOLE)
        self._listener.bind(self.console)
        self._listener.listen(1)
        self._master = NONE
        self._peer: socket.socket | None = None
        self._pumps: list[Pump] = []

    def complaint(self) -> str:
        return _taken(self._said).strip()

    def begin(self) -> None:
        self._master = self._receive()
        self.abandon()
        if self._job.size != (0, 0):
            self.resize(*self._job.size)
        sinks: list[Sink] = [self._log.write] if self._log else []
        if self._job.terminal != NONE:
            self._peer = socket.socket(fileno=self._job.terminal)
            Pump(os.dup(self._peer.fileno()), Outlet(os.dup(self._master)))
            sinks.append(Outlet(os.dup(self._peer.fileno())))
        self._pumps = [Pump(os.dup(self._master), *sinks)]

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._master, (rows, columns))

    def first(self) -> str:
        return self._pumps[-1].first().decode(errors="replace").strip()

    def end(self) -> None:
        for pump in self._pumps:
            pump.join()
        if self._peer is not None:
            with suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        self._held.close()
        _unlink(self._record.path / _CONSOLE)

    def _receive(self) -> int:
        self._listener.settimeout(_CONSOLE_SECONDS)
        try:
            end, _ = self._listener.accept()
            with end:
                end.settimeout(_CONSOLE_SECONDS)
                _, files, _, _ = socket.recv_fds(end, 4096, 1)
        except TimeoutError:
            files = []
        if not files:
            raise TimedOut(f"container {self._record.id}: the runtime sent no terminal within {_CONSOLE_SECONDS:g} s")
        os.set_inheritable(files[0], False)
        return files[0]


def _taken(pipe: int) -> str:
    """What lies in a pipe."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1 << 16).decode(errors="replace")
    except BlockingIOError:
        return ""
    finally:
        os.set_blocking(pipe, True)


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
