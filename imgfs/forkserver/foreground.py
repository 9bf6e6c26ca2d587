"""Being in front of what another process does: it gets the signals that this one gets, and both end alike."""

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
    """Let the process of that pidfd begin, and wait for it; its exit code. None where it declined, and did nothing."""
    return _Foreground(server, process).run()


class _Foreground:
    def __init__(self, server: socket, process: int) -> None:
        self._server = starter
        self._process = process
        self._passed: list[int] = []

    def run(self) -> int | None:
        before = {number: signal.signal(number, self._pass_on) for number in not_ignored(FORWARDED)}
        word = self._word()
        if word == DECLINED:
            for number, handler in before.items():
                signal.signal(number, handler)
            return None
        return int(word) if word else self._killed()

    def _word(self) -> bytes:
        """What is said at the end, nothing where it was killed; DECLINED where it went without being told to begin.

        It does so when this process was stopped (SIGSTOP) for longer than it waits.
        """
        try:
            self._server.send(GO)
            self._server.settimeout(None)
            return self._server.recv(len(DECLINED))
        except (BrokenPipeError, ConnectionResetError):
            return b"" if self._passed else DECLINED
        except OSError:
            return b""

    def _pass_on(self, number: int, _: object) -> None:
        self._passed.append(number)
        try:
            signal.pidfd_send_signal(self._process, number)
        except ProcessLookupError:
            return  # what it left to say is on its way

    def _killed(self) -> int:
        """It went without a word: of a signal that this process got, and dies of, too; or by somebody's hand."""
        if self._passed:
            signal.signal(self._passed[-1], signal.SIG_DFL)
            os.kill(os.getpid(), self._passed[-1])
        os.write(2, b"imgfs: the process that did this ended without a word; `imgfs ps -a` shows what became of it\n")
        return _FAILED
