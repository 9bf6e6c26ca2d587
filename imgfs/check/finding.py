"""What a check found: a thing, what is wrong with it, what follows, and the cure."""

from __future__ import annotations

from typing import Literal

import msgspec

Mend = Literal["aside", "remove", "index", "record", "copy", "database", "adopt", "none", "note"]
"""What repair does: set the file aside; remove it, because it is derived; make a layer's index, an ingest's record, the
copy or the database anew; give the directories of snapshots their rows again; nothing. A note is no damage.
"""


class Finding(msgspec.Struct, frozen=True):
    """One thing. `path` is relative to the state directory. `cure` says what repair or a user does."""

    path: str
    what: str
    consequence: str
    cure: str
    mend: Mend = "none"

    @property
    def is_damage(self) -> bool:
        """Whether anything is to be done about it."""
        return self.mend != "note"

    def line(self) -> str:
        """For people."""
        return f"{self.path}: {self.what}; {self.consequence}; {self.cure}"


def damaged(path: str, what: str) -> Finding:
    """A blob or tar whose bytes are not what its name says."""
    return Finding(
        path,
        what,
        "it is not served when that is noticed, and EIO or EBADMSG until then",
        "repair sets it aside; what a registry has is fetched again",
        "aside",
    )


def derived(path: str, what: str, mend: Mend = "remove") -> Finding:
    """A file that is made again from others."""
    cure = "repair removes it" if mend == "remove" else "repair makes it anew"
    return Finding(path, what, "it is made again when it is needed", cure, mend)


def aside(path: str) -> Finding:
    """What an earlier repair or start set aside."""
    return Finding(path, "was set aside as damaged", "it is not served", "remove it when nobody needs it", "note")


def stranger(path: str) -> Finding:
    """A file where only named ones belong."""
    return Finding(path, "is nothing of imgfs by its name", "it is never served", "move it away", "note")
