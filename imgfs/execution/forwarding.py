"""The signals that a foreground command forwards to the program that it waits for.

This module imports only the C module `_signal`, because every start of a container waits for its import: the enums of
`signal` take longer to build than everything else.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable
else:
    import _signal as signal

FORWARDED = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGWINCH, signal.SIGPIPE, signal.SIGURG, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE),
    signal.SIGABRT,
}
"""All signals but those that concern only the receiving process, and those of a shell's job control.
"""


def not_ignored(numbers: Iterable[int]) -> set[int]:
    """Return the signals that this process does not ignore.

    `nohup` and a shell's `&` ignore signals, and those are not forwarded.
    """
    return {number for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
