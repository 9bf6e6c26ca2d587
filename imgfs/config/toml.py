"""Writing TOML: keys and values, which Python only reads."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable

import msgspec


def dotted(path: Iterable[str]) -> str:
    """A path of keys as TOML writes it: `plugins.compression.xz`."""
    return ".".join(_key(key) for key in path)


def written(value: object) -> str:
    """A value as TOML. What TOML cannot say is a text that says it."""
    text = _json(value)
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return _json(text)
    return text


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else _json(key)


def _json(value: object) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text.replace("\x7f", "\\u007f")  # the one character that JSON leaves as it is and TOML does not
