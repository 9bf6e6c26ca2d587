"""The supervisor's door and its only wait: for the process to end, for messages, for signals."""

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
from imgfs.execution.control import Connection, Json, listening_at

CLIENTS_MAX = 256
_ENDING = (signal.SIGTERM,)
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

Answer = Callable[[Json], Json]


class ControlServer:
    """Listens at `control`. Whoever asks to wait is kept until the end."""

    def __init__(self, path: Path, client: Connection, answer: Answer) -> None:
        """`answer` answers every message but `wait`, and may raise ImgfsError or OSError."""
        self._path = path
        self._client = client
        self._answer = answer
        self._waiting: list[Connection] = []
        self._others: set[Connection] = set()
        self._told: Json | None = None
        self._selector = selectors.DefaultSelector()
        self._listener = listening_at(path)  # who holds the lock is the only one
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._hear(client))
        self._signals = _signal_pipe()
        self._selector.register(self._signals, selectors.EVENT_READ, self._signalled)

    def serve(self, process: int) -> None:
        """Answer until the process of that pidfd has ended."""
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True

        self._selector.register(process, selectors.EVENT_READ, end)
        while not ended:
            self._serve_once()
        self._selector.unregister(process)

    def serve_for(self, seconds: float) -> None:
        """Answer for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._serve_once(left)

    def _serve_once(self, seconds: float | None = None) -> None:
        for key, _ in self._selector.select(seconds):
            if key.fd in self._selector.get_map():  # it may have gone by an event before
                key.data()

    def tell(self, status: Json) -> None:
        """Tell all that wait, but whoever started it, and all that are going to."""
        self._told = status
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one is not self._client:
                with suppress(OSError):
                    one.send(status)

    def close(self, status: Json) -> None:
        """Tell all that wait, but whoever started it, and listen no more."""
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self.tell(status)
        for one in self._others:
            one.close()
        self._selector.close()

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
        except OSError:
            return
        if len(self._others) >= CLIENTS_MAX:
            end.close()
            return
        one = Connection(end)
        self._others.add(one)
        self._selector.register(one, selectors.EVENT_READ, lambda: self._hear(one))

    def _hear(self, one: Connection) -> None:
        try:
            message = one.receive()
            if message is None:
                self._drop(one)
            elif message.get("do") == "wait":
                self._wait(one)
            elif message.get("do") != "cancel":  # which came too late; its answer is that the program runs
                one.send(self._answered(message))
        except (ImgfsError, OSError):
            self._drop(one)

    def _wait(self, one: Connection) -> None:
        if self._told is None or one is self._client:
            self._waiting.append(one)
        else:
            one.send(self._told)

    def _answered(self, message: Json) -> Json:
        try:
            return self._answer(message)
        except ImgfsError as error:
            return {"error": error.message, "errno": error.errno}
        except OSError as error:
            number = error.errno or errno.EIO
            return {"error": os.strerror(number), "errno": number}

    def _drop(self, one: Connection) -> None:
        self._selector.unregister(one)
        self._others.discard(one)
        if one in self._waiting:
            self._waiting.remove(one)
        one.close()

    def _signalled(self) -> None:
        for number in os.read(self._signals, 4096):
            if number in _ENDING:
                with suppress(ImgfsError, OSError):
                    self._answer({"do": "stop"})


def number_of(message: Json, key: str, most: int) -> int:
    """A number of a message. Raises Invalid."""
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Invalid(f"control: {key} {value!r}: expected a number up to {most}")
    return value


def unknown(message: Json) -> Unsupported:
    """The failure for what no supervisor does."""
    return Unsupported(f"control: {str(message.get('do'))[:40]!r}: expected kill, resize or wait")


def _signal_pipe() -> int:
    """What is readable after a signal. Handled, not ignored: what is ignored stays so in the container's programs."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (*_ENDING, *_IGNORED):
        signal.signal(number, _heard)
    return reading


def _heard(*_: object) -> None:
    """The number is in the pipe."""


_LEAVING_SECONDS = 0.1
"""What whoever was told the last word has for himself."""


def begun(work: Callable[[], None]) -> Callable[[], None]:
    """Begin `work` beside this thread; who calls the result waits for its end.

    Where there can be no other thread (the limit for processes of who started it) he does it himself, then.
    """
    thread = threading.Thread(target=work)
    try:
        thread.start()
    except RuntimeError:
        return work
    return thread.join


def is_gone(client: Connection) -> bool:
    """Whether the other side has left, or says before it is answered that it does not want to wait any more."""
    return is_ready(client.fileno())


def is_ready(descriptor: int) -> bool:
    """Whether it can be read now; of a pidfd, whether the process has ended."""
    return _poll(descriptor, 0)


def wait_left(client: Connection) -> None:
    """Wait for a moment until who was told the last word has ended: what is left would share a processor with him.

    For nothing but speed: he may go on.
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
