"""What a check found: a thing, what is wrong with it, what follows, and the cure."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One damaged thing. `path` is relative to the state directory. `cure` says what repair or a user does.

    `mend` tells what `repair` does with the file: set it aside, remove it because it is derived, or nothing.
    """

    path: str
    what: str
    consequence: str
    cure: str
    mend: str = "none"

    def line(self) -> str:
        """For people."""
        return f"{self.path}: {self.what}; {self.consequence}; {self.cure}"


ASIDE, REMOVE, NONE = "aside", "remove", "none"


def damaged(path: str, what: str) -> Finding:
    """A blob or tar whose bytes are not what its name says."""
    return Finding(
        path,
        what,
        "it is not served when that is noticed, and EIO or EBADMSG until then",
        "repair sets it aside; what a registry has is fetched again when it is read",
        ASIDE,
    )


def derived(path: str, what: str) -> Finding:
    """A file that is made again from others."""
    return Finding(path, what, "it is made again when it is needed", "repair removes it", REMOVE)
