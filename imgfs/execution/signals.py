"""Signals as people and images write them."""

from __future__ import annotations

import signal

from imgfs.errors import Invalid


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
