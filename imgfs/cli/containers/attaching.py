"""Being in front of a container: its signals, its exit code, and its terminal, which this process has in raw mode.

The terminal is given back as it was, whatever ends this process but SIGKILL.
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
    """Rows and columns of the terminal that is stdin; zeros where it is none."""
    try:
        return termios.tcgetwinsize(0)
    except termios.error:
        return 0, 0


class Front:
    """Whoever stays in front of a container."""

    def __init__(self, *, terminal: bool, interactive: bool) -> None:
        """`terminal`: the container has one of its own. `interactive`: it is to get what is typed."""
        self._has_terminal = terminal
        self._is_interactive = interactive
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._signals = NONE

    def attached(self, held: ExitStack) -> CallerStreams:
        """What to start the container with; `held` is to be closed after it has ended.

        From now on signals are the container's; before it runs they are why it does not.
        """
        self._signals = held.enter_context(_signals())
        if not self._has_terminal:
            stdin = 0 if self._is_interactive else NONE
            return CallerStreams(stdin=stdin, stdout=1, stderr=2, interrupted=self._signals)
        self._ours, self._theirs = (held.enter_context(end) for end in socket.socketpair())
        return CallerStreams(terminal=self._theirs.fileno(), size=terminal_size(), interrupted=self._signals)

    def stay(self, control: Connection) -> tuple[ContainerStatus, list[str]]:
        """Pass signals and the terminal on until the container has ended; how it did, and what else there is to say."""
        if self._theirs is not None:
            self._theirs.close()  # the supervisor has it; ours ends when its one does
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
        with suppress(OSError):  # it may have ended already: what is told of that lies there
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
    """A descriptor that gets the number of each signal that is to be passed on."""
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
    """The number is in the pipe."""


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
