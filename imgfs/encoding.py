"""The JSON format of files in the mounted tree and in the state directory: indented, with a final newline."""

from __future__ import annotations

import msgspec


def indented_json(value: object) -> bytes:
    """Return `value` as an indented JSON document. Types that msgspec cannot encode, such as Digest, become `str`."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"
