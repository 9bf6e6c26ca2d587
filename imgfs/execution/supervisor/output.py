"""What a container writes: from its pipes into the log, which is bounded, and to whoever started it in front.

A thread for each stream, because whoever reads may stop reading: then the container waits, as it would in a shell, and
the supervisor does not.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PIECE = 1 << 16
_FIRST = 1000


class Log:
    """`log`, and before it `log.1`: raw bytes in the order of their arrival, `limit` bytes in each at most.

    What the disk does not take is lost and counted; the container goes on.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._writing = threading.Lock()
        self._file = _appending(path)
        self._size = os.fstat(self._file).st_size
        self.lost = 0
        """Bytes that are in no log."""

    def write(self, data: bytes) -> None:
        """Append. Called by several threads."""
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
        """Let go of the file."""
        os.close(self._file)

    def _rotate(self) -> None:
        os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
        file = _appending(self._path)
        os.dup2(file, self._file, inheritable=False)
        os.close(file)
        self._size = 0


class Pump:
    """Takes bytes from a descriptor until its end, in a thread; closes it then."""

    def __init__(self, source: int, *sinks: Callable[[bytes], None]) -> None:
        """A sink that raises OSError is not asked again; after the last `source` is closed, as in a shell's pipe.

        Raises OSError where there can be no other thread.
        """
        self._source = source
        self._sinks = list(sinks)
        self._first = b""
        self._has_come = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def join(self) -> None:
        """Wait until all is out."""
        self._thread.join()

    def first(self) -> bytes:
        """The beginning of what came first; waits for that, or for the end."""
        self._has_come.wait()
        return self._first

    def _run(self) -> None:
        while data := self._read():
            if not self._first:
                self._first = data[:_FIRST]
                self._has_come.set()
            wanted = bool(self._sinks)
            for sink in list(self._sinks):
                try:
                    sink(data)
                except OSError:
                    self._sinks.remove(sink)
            if wanted and not self._sinks:
                break
        self._has_come.set()
        os.close(self._source)

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _PIECE)
        except OSError:  # EIO: the other side of a terminal is gone
            return b""


class Outlet:
    """A sink that writes to a descriptor, and closes it when nobody reads it any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_open = True

    def __call__(self, data: bytes) -> None:
        """Raises OSError."""
        try:
            _write_all(self._descriptor, data)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the descriptor, after the last call: whoever reads there waits for that."""
        if self._is_open:
            self._is_open = False
            with suppress(OSError):
                os.close(self._descriptor)


def _appending(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
