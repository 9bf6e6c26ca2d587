"""TOML beyond tomllib: writing keys and values, and the line on which a document sets each key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec

Keys = tuple[str, ...]


def dotted(path: Iterable[str]) -> str:
    """Return a path of keys as TOML writes it: `plugins.compression.xz`."""
    return ".".join(_key(key) for key in path)


def written(value: object) -> str:
    """Return a value as TOML. A value that TOML cannot express is written as a string."""
    text = _json(value)
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return _json(text)
    return text


def lines_of(text: str) -> dict[Keys, int]:
    """Return the line, from 1, on which each value of `text` begins, by its path of keys. `text` must be valid TOML.

    A statement ends with the first line up to which it parses, because no prefix of a statement parses. The cost is
    quadratic in the lines of one value, so the function is for short documents.
    """
    found: dict[Keys, int] = {}
    table: Keys = ()
    chunk, start = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        chunk += f"{line}\n"
        try:
            parsed = tomllib.loads(chunk)
        except tomllib.TOMLDecodeError:
            continue
        if chunk.lstrip().startswith("["):
            table = _header(parsed)
        else:
            found |= {(*table, *path): start for path in _leaves(parsed)}
        chunk, start = "", number + 1
    return found


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else _json(key)


def _json(value: object) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text.replace("\x7f", "\\u007f")  # JSON leaves this one character unescaped, and TOML does not allow it


def _header(parsed: dict[str, Any]) -> Keys:
    """Return the path of keys that `[a.b]` or `[[a.b]]` opens."""
    keys: list[str] = []
    inner: Any = parsed
    while inner:
        if isinstance(inner, list):
            inner = cast("list[Any]", inner)[0]
            continue
        key = next(iter(inner))
        keys.append(key)
        inner = inner[key]
    return tuple(keys)


def _leaves(value: dict[str, Any]) -> Iterator[Keys]:
    """Yield the path of each value that is not a table, and of each empty table."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from ((key, *path) for path in _leaves(cast("dict[str, Any]", inner)))
        else:
            yield (key,)
