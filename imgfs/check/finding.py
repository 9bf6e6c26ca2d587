"""The result of a check: a path, what is wrong with it, the consequence, and the cure."""

from __future__ import annotations

from typing import Literal

import msgspec

Mend = Literal["aside", "remove", "index", "record", "copy", "database", "adopt", "none", "note"]
"""What repair does: set the file aside; remove a derived file; rebuild a layer's index, an ingest's record, the row
copy or the database; add the missing rows of snapshot directories; nothing. A note is no damage.
"""


class Finding(msgspec.Struct, frozen=True):
    """One finding. `path` is relative to the state directory. `cure` says what repair does or the user has to do."""

    path: str
    what: str
    consequence: str
    cure: str
    mend: Mend = "none"

    @property
    def is_damage(self) -> bool:
        """Whether repair or the user has to do something."""
        return self.mend != "note"

    def line(self) -> str:
        """The finding as one line of text."""
        return f"{self.path}: {self.what}; {self.consequence}; {self.cure}"


def damaged(path: str, what: str) -> Finding:
    """A blob or tar whose bytes do not match its name."""
    return Finding(
        path,
        what,
        "it is not served when that is noticed, and EIO or EBADMSG until then",
        "repair sets it aside; what a registry has is fetched again",
        "aside",
    )


def derived(path: str, what: str, mend: Mend = "remove") -> Finding:
    """A damaged file that imgfs rebuilds from other files."""
    cure = "repair removes it" if mend == "remove" else "repair makes it anew"
    return Finding(path, what, "it is made again when it is needed", cure, mend)


def aside(path: str) -> Finding:
    """A file that an earlier repair or start set aside."""
    return Finding(path, "was set aside as damaged", "it is not served", "remove it once it is of no use", "note")


def stranger(path: str) -> Finding:
    """A file whose name imgfs never uses in that directory."""
    return Finding(path, "is nothing of imgfs by its name", "it is never served", "move it away", "note")
