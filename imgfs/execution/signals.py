"""Names of signals, as users and images write them."""

from __future__ import annotations

import signal

from imgfs.errors import Invalid

_FIRST = {"RTMIN": "+", "RTMAX": "-"}
"""The names that real-time signals are counted from, and the direction. They have no names of their own."""


def signal_number(text: str, subject: str) -> int:
    """Return the number of a signal given as `SIGTERM`, `TERM`, `RTMIN+3`, `RTMAX-2` or `15`. Raises Invalid."""
    name = text.strip().upper().removeprefix("SIG")
    if _is_number(name) and 0 < int(name) <= signal.SIGRTMAX:
        return int(name)
    base, sign, offset = name[:5], name[5:6], name[6:]
    if _FIRST.get(base) == sign and _is_number(offset):
        number = getattr(signal, f"SIG{base}") + int(f"{sign}{offset}")
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    try:
        return signal.Signals[f"SIG{name}"]
    except KeyError:
        raise Invalid(
            f"{subject}: {text[:40]!r} is not a signal; expected a name such as SIGTERM, or a number"
        ) from None


def _is_number(text: str) -> bool:
    """Return whether the text is a short decimal number. Python refuses to convert more than 4,300 digits."""
    return text.isascii() and text.isdigit() and len(text) < 4
