"""Which signals whoever stands in front of a program passes on to it.

By itself and of the C module alone, because everybody who starts a container waits for it to be loaded: the enums that
`signal` makes of the numbers take longer than all else.
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
"""The rest is about himself alone, or the shell's to stop and go on with him."""


def not_ignored(numbers: Iterable[int]) -> set[int]:
    """Those that this process does not ignore: what `nohup` or a shell's `&` has it ignore is for nobody."""
    return {number for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
