"""JSON as the files of the tree and of the state directory have it: indented for people, with an end of line."""

from __future__ import annotations

import msgspec


def indented_json(value: object) -> bytes:
    """`value` as a document; what msgspec does not know, a Digest for one, is written as its text."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"
