"""Signals as people and images write them."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from imgfs.errors import Invalid

PASSED_ON = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGWINCH, signal.SIGPIPE, signal.SIGURG, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE),
    signal.SIGABRT,
}
"""What whoever stands in front of a program passes on to it. The rest is about himself alone, or the shell's to stop
and go on with him.
"""


def not_ignored(numbers: Iterable[int]) -> set[int]:
    """Those that this process does not ignore: what `nohup` or a shell's `&` has it ignore is for nobody."""
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


def signal_number(text: str, subject: str) -> int:
    """The number of a signal, given as `SIGTERM`, `TERM`, `RTMIN+3` or `15`. Raises Invalid."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and 0 < int(name) <= signal.SIGRTMAX:
        return int(name)
    base, plus, offset = name.partition("+")
    if plus and base == "RTMIN" and offset.isascii() and offset.isdigit():
        number = signal.SIGRTMIN + int(offset)
        if number <= signal.SIGRTMAX:
            return number
    try:
        return signal.Signals[f"SIG{name}"]
    except KeyError:
        raise Invalid(f"{subject}: {text[:40]!r} is no signal; expected a name such as SIGTERM, or a number") from None
