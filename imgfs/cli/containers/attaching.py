"""The foreground of a container: forward signals and terminal input, show output, return the exit code.

The caller's terminal is in raw mode meanwhile. It is restored whatever ends this process, except SIGKILL.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import msgspec

from imgfs.execution.control import Connection
from imgfs.execution.forwarding import FORWARDED, not_ignored
from imgfs.execution.launch import NONE
from imgfs.execution.records.record import ContainerStatus
from imgfs.execution.start import CallerStreams

_PIECE = 1 << 16


def terminal_size() -> tuple[int, int]:
    """Return rows and columns of the terminal at stdin; zeros if stdin is not a terminal."""
    try:
        return termios.tcgetwinsize(0)
    except termios.error:
        return 0, 0


class Front:
    """The foreground command of a container."""

    def __init__(self, *, terminal: bool, interactive: bool) -> None:
        """`terminal`: the container has a terminal of its own. `interactive`: it receives the caller's stdin."""
        self._has_terminal = terminal
        self._is_interactive = interactive
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._signals = NONE

    def attached(self, held: ExitStack) -> CallerStreams:
        """Return the descriptors to start the container with. The caller closes `held` after the container has ended.

        From now on signals are forwarded to the container. A signal before the program runs aborts the start.
        """
        self._signals = held.enter_context(_signals())
        if not self._has_terminal:
            stdin = 0 if self._is_interactive else NONE
            return CallerStreams(stdin=stdin, stdout=1, stderr=2, interrupted=self._signals)
        self._ours, self._theirs = (held.enter_context(end) for end in socket.socketpair())
        return CallerStreams(terminal=self._theirs.fileno(), size=terminal_size(), interrupted=self._signals)

    def stay(self, control: Connection) -> tuple[ContainerStatus, list[str]]:
        """Forward signals and the terminal until the container has ended. Returns its status and further messages."""
        if self._theirs is not None:
            self._theirs.close()  # the supervisor has a copy; our end sees EOF when the supervisor closes it
        is_typing = self._ours is not None and self._is_interactive
        with _raw(wanted=is_typing):
            return _Relay(control, self._ours, self._signals, is_typing=is_typing).run()


class _Relay:
    def __init__(self, control: Connection, terminal: socket.socket | None, signals: int, *, is_typing: bool) -> None:
        self._control = control
        self._terminal = terminal
        self._signals = signals
        self._ended: dict[str, Any] | None = None
        self._sources: dict[int, Callable[[], None]] = {control.fileno(): self._hear, signals: self._pass_signals}
        if terminal is not None:
            self._sources[terminal.fileno()] = self._show
        if is_typing:
            self._sources[0] = self._type

    def run(self) -> tuple[ContainerStatus, list[str]]:
        with suppress(OSError):  # the supervisor may have ended already; its last message can still be received
            self._control.send({"do": "wait"})
        while self._ended is None or (self._terminal is not None and self._terminal.fileno() in self._sources):
            for source in select.select(list(self._sources), [], [])[0]:
                if source in self._sources:
                    self._sources[source]()
        return msgspec.convert(self._ended["status"], ContainerStatus), list(self._ended.get("notes", ()))

    def _hear(self) -> None:
        message = self._control.answer()
        if "status" in message:
            self._ended = message
            del self._sources[self._control.fileno()]

    def _pass_signals(self) -> None:
        for number in os.read(self._signals, 4096):
            message: dict[str, Any] = {"do": "kill", "signal": number}
            if number == signal.SIGWINCH:
                rows, columns = terminal_size()
                message = {"do": "resize", "rows": rows, "columns": columns}
            with suppress(OSError):
                self._control.send(message)

    def _show(self) -> None:
        assert self._terminal
        try:
            data = self._terminal.recv(_PIECE)
        except OSError:
            data = b""
        if not data:
            del self._sources[self._terminal.fileno()]
            self._sources.pop(0, None)
        while data:
            data = data[os.write(1, data) :]

    def _type(self) -> None:
        assert self._terminal
        try:
            data = os.read(0, _PIECE)
            self._terminal.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._sources.pop(0, None)


@contextmanager
def _signals() -> Generator[int]:
    """Yield a descriptor from which the number of each signal to forward can be read."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _heard) for number in not_ignored({*FORWARDED, signal.SIGWINCH})}
    try:
        yield reading
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def _heard(*_: object) -> None:
    """Do nothing: the wakeup descriptor has received the signal number."""


@contextmanager
def _raw(*, wanted: bool) -> Generator[None]:
    if not wanted or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
