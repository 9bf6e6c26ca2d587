"""The streams of a container: created before the runtime is called, then copied to log and caller.

Each stream has its own thread, because a reader may stop reading. The container then blocks, as it would in a shell,
but the supervisor does not.
"""

from __future__ import annotations

import errno
import os
import socket
import termios
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from imgfs.errors import TimedOut
from imgfs.execution.control import open_directory, socket_path
from imgfs.execution.launch import NONE, Job
from imgfs.execution.records.record import ContainerRecord

Sink = Callable[[bytes], None]
_CONSOLE = "console"
_CONSOLE_SECONDS = 10.0


class Streams(Protocol):
    """The three streams of a container, or its terminal."""

    @property
    def stdio(self) -> Sequence[int]:
        """The descriptors that the runtime passes to the process."""
        ...

    @property
    def console(self) -> str | None:
        """The path of the socket on which the runtime sends the terminal."""
        ...

    def complaint(self) -> str:
        """Return, and remove, the output of a failed runtime on the container's streams."""
        ...

    def begin(self) -> None:
        """Start to copy. The runtime has finished. Raises TimedOut, OSError."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal."""
        ...

    def first(self) -> str:
        """Return the beginning of the error output of a container that has ended."""
        ...

    def end(self) -> None:
        """Return when all output has been copied."""
        ...

    def abandon(self) -> None:
        """Close everything. The container was not created."""
        ...


def streams_of(job: Job, record: ContainerRecord, log: Log | None) -> Streams:
    """Create the streams for a job."""
    if record.container().tty:
        return _Terminal(job, record, log)
    return _Pipes(job, log)


class _Pipes:
    """stdin is passed on unchanged, so that its end and its speed are kept. Output is copied through pipes."""

    console = None

    def __init__(self, job: Job, log: Log | None) -> None:
        self._log = log
        self._sinks = [None if one == NONE else Outlet(one) for one in (job.stdout, job.stderr)]
        read_end, out = os.pipe()
        self._sources: Sequence[int] = (read_end,)
        if self._sinks == [None, None]:  # one pipe for both keeps their order
            err = os.dup(out)
        else:
            errors, err = os.pipe()
            self._sources = (read_end, errors)
        stdin = job.stdin if job.stdin != NONE else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.stdio: Sequence[int] = (stdin, out, err)
        self._pumps: list[Pump] = []

    def complaint(self) -> str:
        return " ".join(_drain(source) for source in self._sources).strip()

    def begin(self) -> None:
        sources, self._sources = self._sources, ()
        self._pumps = [Pump(source, *self._to(sink)) for source, sink in zip(sources, self._sinks, strict=False)]
        self.abandon()  # if the supervisor held the write ends, the pipes would never end

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
    """The runtime creates a terminal and sends its other side, which is copied to and from a socket."""

    def __init__(self, job: Job, record: ContainerRecord, log: Log | None) -> None:
        self._job = job
        self._log = log
        self._record = record
        self._held = ExitStack()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._errors, write_end = os.pipe()
        for descriptor in (null, self._errors, write_end):
            self._held.callback(os.close, descriptor)
        self.stdio: Sequence[int] = (null, null, write_end)
        self._listener = socket.socket(socket.AF_UNIX)
        self._held.callback(self._listener.close)
        directory = self._held.enter_context(open_directory(record.path))
        self.console: str | None = socket_path(directory, _CONSOLE)
        _unlink(record.path / _CONSOLE)
        self._listener.bind(self.console)
        self._listener.listen(1)
        self._master = NONE
        self._peer: socket.socket | None = None
        self._pumps: list[Pump] = []

    def complaint(self) -> str:
        return _drain(self._errors).strip()

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


def _drain(pipe: int) -> str:
    """Return the content of a pipe without waiting."""
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


_PIECE = 1 << 16
_HEAD_BYTES = 1000


class Log:
    """`log`, preceded by `log.1`: raw bytes in the order of arrival, at most `limit` bytes in each file.

    Bytes that the disk refuses are lost and counted. The container continues.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._writing = threading.Lock()
        self._file = _open_for_append(path)
        self._size = os.fstat(self._file).st_size
        self.lost = 0
        """Number of bytes that are in no log."""

    def write(self, data: bytes) -> None:
        """Append. Thread-safe."""
        with self._writing:
            try:
                while data:
                    if self._size >= self._limit:
                        self._rotate()
                    written = os.write(self._file, data[: self._limit - self._size])
                    self._size += written
                    data = data[written:]
            except OSError:
                self.lost += len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _rotate(self) -> None:
        # Not through Disk: a power cut may lose the end of a log.
        os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
        file = _open_for_append(self._path)
        os.dup2(file, self._file, inheritable=False)
        os.close(file)
        self._size = 0


class Pump:
    """Copies a descriptor to its sinks in a thread until the end, and then closes it."""

    def __init__(self, source: int, *sinks: Callable[[bytes], None]) -> None:
        """A sink that raises OSError is dropped.

        After the last sink is dropped, `source` is closed, as in a shell's pipe.

        Raises OSError if no thread can be started.
        """
        self._source = source
        self._sinks = list(sinks)
        self._head = b""
        self._has_data = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def join(self) -> None:
        """Wait until everything is copied."""
        self._thread.join()

    def first(self) -> bytes:
        """Return the beginning of the first data. Waits for data or the end."""
        self._has_data.wait()
        return self._head

    def _run(self) -> None:
        while data := self._read():
            if not self._head:
                self._head = data[:_HEAD_BYTES]
                self._has_data.set()
            wanted = bool(self._sinks)
            for sink in list(self._sinks):
                try:
                    sink(data)
                except OSError:
                    self._sinks.remove(sink)
            if wanted and not self._sinks:
                break
        self._has_data.set()
        os.close(self._source)

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _PIECE)
        except OSError:  # EIO: the other side of a terminal is closed
            return b""


class Outlet:
    """A sink that writes to a descriptor, and closes it when its reader has left."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_open = True

    def __call__(self, data: bytes) -> None:
        """Write all of `data`. Raises OSError."""
        try:
            _write_all(self._descriptor, data)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor after the last write. Its reader waits for this end."""
        if self._is_open:
            self._is_open = False
            with suppress(OSError):
                os.close(self._descriptor)


def _open_for_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
