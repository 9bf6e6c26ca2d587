"""The caller while a child of the fork server runs its command: it forwards signals and ends as the child ends."""

from __future__ import annotations

import os
from _socket import socket

from imgfs.execution.forwarding import FORWARDED, not_ignored
from imgfs.forkserver.request import DECLINED, GO

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # see imgfs.execution.forwarding

_FAILED = 125


def run_in_foreground(server: socket, process: int) -> int | None:
    """Let the child behind the pidfd `process` begin and wait for it.

    Return its exit code, or None if it declined and did nothing.
    """
    return _Foreground(server, process).run()


class _Foreground:
    def __init__(self, server: socket, process: int) -> None:
        self._server = server
        self._process = process
        self._forwarded: list[int] = []

    def run(self) -> int | None:
        handlers = {number: signal.signal(number, self._forward) for number in not_ignored(FORWARDED)}
        message = self._last_message()
        if message == DECLINED:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            return None
        return int(message) if message else self._end_without_message()

    def _last_message(self) -> bytes:
        """Return the last message of the child, empty if the child was killed.

        Return DECLINED if the child exited before it received GO. That happens if this process was stopped (SIGSTOP)
        for longer than the child waits.
        """
        try:
            self._server.send(GO)
            self._server.settimeout(None)
            return self._server.recv(len(DECLINED))
        except (BrokenPipeError, ConnectionResetError):
            return b"" if self._forwarded else DECLINED
        except OSError:
            return b""

    def _forward(self, number: int, _: object) -> None:
        self._forwarded.append(number)
        try:
            signal.pidfd_send_signal(self._process, number)
        except ProcessLookupError:
            return  # the child has exited and its last message is on the way

    def _end_without_message(self) -> int:
        """Handle a child that exited without a message.

        If this process forwarded a signal, the child died of it, and this process dies of the same signal. Otherwise
        the child was killed from outside.
        """
        if self._forwarded:
            signal.signal(self._forwarded[-1], signal.SIG_DFL)
            os.kill(os.getpid(), self._forwarded[-1])
        os.write(2, b"imgfs: the process that ran this command was killed; `imgfs ps -a` shows the container's state\n")
        return _FAILED
