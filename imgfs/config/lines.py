"""On which line of a TOML document a key is set, which tomllib does not tell."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any, cast

Path = tuple[str, ...]


def lines_of(text: str) -> dict[Path, int]:
    """The line, from 1, on which each value of `text` begins, by its path of keys. `text` has to be TOML.

    A statement ends with the first line up to which it parses, as no beginning of one does. That is quadratic in the
    lines of one value, so it is for short documents.
    """
    found: dict[Path, int] = {}
    table: Path = ()
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


def _header(parsed: dict[str, Any]) -> Path:
    """The path that `[a.b]` or `[[a.b]]` opens."""
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


def _leaves(value: dict[str, Any]) -> Iterator[Path]:
    """The path of each value that is no table, and of each empty table."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from ((key, *path) for path in _leaves(cast("dict[str, Any]", inner)))
        else:
            yield (key,)
