"""Recognises the whiteouts of a layer by their names (image-spec, layer.md, "Whiteouts"). tree.py applies them."""

from __future__ import annotations

from imgfs.layers.entry import Entry, EntryKind

_MARK = b".wh."
_OPAQUE = b".wh..wh..opq"


def is_marked(path: bytes) -> bool:
    """Return whether a component of the cleaned `path` starts with `.wh.`. Such a path is never a file of the layer."""
    return path.startswith(_MARK) or b"/.wh." in path


def whiteout(path: bytes) -> Entry | None:
    """Return the whiteout that a marked path stands for; None if it hides nothing.

    `.wh.`, `.wh..` and `.wh...` hide nothing, because no file can have the name after the mark. Other `.wh..wh.` names,
    and paths below a marked directory, are metadata of AUFS and hide nothing either.
    """
    parent, slash, base = path.rpartition(b"/")
    if is_marked(parent):
        return None
    if base == _OPAQUE:
        return Entry(parent, EntryKind.OPAQUE)
    hidden = base[len(_MARK) :]
    if hidden in (b"", b".", b"..") or hidden.startswith(_MARK):
        return None
    return Entry(parent + slash + hidden, EntryKind.WHITEOUT)
