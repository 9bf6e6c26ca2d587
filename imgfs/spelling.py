"""Suggest a known name when a user misspells one."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def hint(name: str, known: Collection[str], otherwise: str = "") -> str:
    """Return "did you mean ...?" with the closest known name; if none is close, `otherwise` or a list of all names."""
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return otherwise or f"known are {', '.join(known)}"
