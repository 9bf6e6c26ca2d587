"""JSON arrays of many values, read and written one value after the other: none is in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

_PIECE = 1 << 18
"""Characters that are read at once."""
_INDENT = "  "
_SPACES = re.compile(r"[ \t\n\r]*")
_BEHIND = tuple(",] \t\n\r")
"""What stands behind a value."""


def read_array(file: TextIO) -> Iterator[Any]:
    """The values of the array that is in `file`. Raises ValueError and RecursionError where there is none, OSError."""
    text = _Text(file)
    text.expect("[")
    if text.peek() != "]":
        yield text.value()
        while text.peek() == ",":
            text.expect(",")
            yield text.value()
    text.expect("]")
    if text.peek():
        raise ValueError("something follows the array")


def array_text(values: Iterable[object]) -> Iterator[str]:
    """The text of an indented array, as render_json has it, in pieces."""
    before, after = f"[\n{_INDENT}", "[]"
    for value in values:
        yield before + json.dumps(value, indent=len(_INDENT)).replace("\n", f"\n{_INDENT}")
        before, after = f",\n{_INDENT}", "\n]"
    yield after


class _Text:
    """Text that comes in pieces: what was looked at is not kept."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at: int = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACES.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        """Step over `character`."""
        if self.peek() != character:
            raise ValueError(f"expected {character!r}, found {self.peek()!r}")
        self._at += 1

    def value(self) -> Any:
        """The next value; more is read until it is whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if self._text[end : end + 1] not in _BEHIND and self._more():
                continue  # the end of a number is to come, or may be
            self._at = end
            return value

    def _more(self) -> bool:
        piece = self._file.read(max(_PIECE, len(self._text) - self._at))
        self._text = self._text[self._at :] + piece
        self._at = 0
        return bool(piece)
