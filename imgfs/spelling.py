"""What to say of a name that somebody wrote and that is none of the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def hint(name: str, known: Collection[str], otherwise: str = "") -> str:
    """A question for the known name that is nearest; if none is near, `otherwise` or the known ones."""
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return otherwise or f"known are {', '.join(known)}"
