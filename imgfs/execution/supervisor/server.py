"""The supervisor's control socket and its only wait: for the end of the process, for messages and for signals."""

from __future__ import annotations

import errno
import os
import select
import selectors
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from imgfs.errors import ImgfsError, Invalid, Unsupported
from imgfs.execution.control import Connection, Json, listen_at

CLIENTS_MAX = 256
_ENDING = (signal.SIGTERM,)
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

Answer = Callable[[Json], Json]


class ControlServer:
    """Serves the socket `control`. A client that sends "wait" is kept until the container ends."""

    def __init__(self, path: Path, client: Connection, answer: Answer) -> None:
        """`answer` answers every message except "wait", and may raise ImgfsError or OSError."""
        self._path = path
        self._client = client
        self._answer = answer
        self._waiting: list[Connection] = []
        self._clients: set[Connection] = set()
        self._final: Json | None = None
        self._selector = selectors.DefaultSelector()
        self._listener = listen_at(path)  # the lock ensures that there is only one supervisor
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._receive(client))
        self._signals = _signal_pipe()
        self._selector.register(self._signals, selectors.EVENT_READ, self._handle_signals)

    def serve(self, process: int) -> None:
        """Serve until the process behind the pidfd has ended."""
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True

        self._selector.register(process, selectors.EVENT_READ, end)
        while not ended:
            self._serve_once()
        self._selector.unregister(process)

    def serve_for(self, seconds: float) -> None:
        """Serve for this many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._serve_once(left)

    def _serve_once(self, seconds: float | None = None) -> None:
        for key, _ in self._selector.select(seconds):
            if key.fd in self._selector.get_map():  # an earlier event may have closed it
                key.data()

    def report_status(self, status: Json) -> None:
        """Report the status to all waiters except the client, and to waiters that arrive later."""
        self._final = status
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            if connection is not self._client:
                with suppress(OSError):
                    connection.send(status)

    def close(self, status: Json) -> None:
        """Report the status to all waiters except the client, and stop listening."""
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self.report_status(status)
        for connection in self._clients:
            connection.close()
        self._selector.close()

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= CLIENTS_MAX:
            end.close()
            return
        connection = Connection(end)
        self._clients.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: Connection) -> None:
        try:
            message = connection.receive()
            if message is None:
                self._drop(connection)
            elif message.get("do") == "wait":
                self._wait(connection)
            elif message.get("do") != "cancel":  # it came too late; the answer is that the program runs
                connection.send(self._safe_answer(message))
        except (ImgfsError, OSError):
            self._drop(connection)

    def _wait(self, connection: Connection) -> None:
        if self._final is None or connection is self._client:
            self._waiting.append(connection)
        else:
            connection.send(self._final)

    def _safe_answer(self, message: Json) -> Json:
        try:
            return self._answer(message)
        except ImgfsError as error:
            return {"error": error.message, "errno": error.errno}
        except OSError as error:
            number = error.errno or errno.EIO
            return {"error": os.strerror(number), "errno": number}

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection)
        self._clients.discard(connection)
        if connection in self._waiting:
            self._waiting.remove(connection)
        connection.close()

    def _handle_signals(self) -> None:
        for number in os.read(self._signals, 4096):
            if number in _ENDING:
                with suppress(ImgfsError, OSError):
                    self._answer({"do": "stop"})


def number_of(message: Json, key: str, most: int) -> int:
    """Return a number of a message. Raises Invalid."""
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Invalid(f"control: {key} {value!r}: expected a number up to {most}")
    return value


def unknown(message: Json) -> Unsupported:
    """Return the error for an unknown message."""
    return Unsupported(f"control: {str(message.get('do'))[:40]!r}: expected kill, resize or wait")


def _signal_pipe() -> int:
    """Return a pipe that is readable after a signal.

    A signal that is ignored would stay ignored in the container's programs.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (*_ENDING, *_IGNORED):
        signal.signal(number, _ignore)
    return reading


def _ignore(*_: object) -> None:
    """Do nothing. The wake-up pipe has the number of the signal."""


_LEAVING_SECONDS = 0.1
"""Seconds that the client gets for itself after its last report."""


def start_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Start `work` in a thread. The result waits for its end.

    If no thread can be started (limit of processes), the result does the work instead.
    """
    thread = threading.Thread(target=work)
    try:
        thread.start()
    except RuntimeError:
        return work
    return thread.join


def has_left(client: Connection) -> bool:
    """Return whether the peer has closed, or has sent "cancel" before its first answer."""
    return is_ready(client.fileno())


def is_ready(descriptor: int) -> bool:
    """Return whether the descriptor is readable. A pidfd is readable when its process has ended."""
    return _poll(descriptor, 0)


def wait_for_exit(client: Connection) -> None:
    """Wait up to `_LEAVING_SECONDS` for the exit of the client after its last report.

    This only avoids that the cleanup competes with the client for a processor. The client may live on.
    """
    with suppress(OSError):
        process = os.pidfd_open(client.peer())
        try:
            _poll(process, _LEAVING_SECONDS)
        finally:
            os.close(process)


def _poll(descriptor: int, seconds: float) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))
