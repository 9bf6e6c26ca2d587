"""Read and write large JSON arrays value by value, so that an array is never in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

_PIECE = 1 << 18
"""Characters per read."""
_INDENT = "  "
_SPACES = re.compile(r"[ \t\n\r]*")
_BEHIND = tuple(",] \t\n\r")
"""Characters that can follow a value."""


def read_array(file: TextIO) -> Iterator[Any]:
    """Yield the values of the array in `file`. Raises OSError; ValueError or RecursionError if it is not an array."""
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
    """Yield the text of an indented array in pieces, formatted as `render_json` formats it."""
    before, after = f"[\n{_INDENT}", "[]"
    for value in values:
        yield before + json.dumps(value, indent=len(_INDENT)).replace("\n", f"\n{_INDENT}")
        before, after = f",\n{_INDENT}", "\n]"
    yield after


class _Text:
    """Text that is read in pieces; pieces that were parsed are dropped."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at: int = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is not a space, or an empty string at the end."""
        while True:
            match = _SPACES.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        """Consume `character`. Raises ValueError if another character is next."""
        if self.peek() != character:
            raise ValueError(f"expected {character!r}, found {self.peek()!r}")
        self._at += 1

    def value(self) -> Any:
        """Return the next value. Reads until the value is complete."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if self._text[end : end + 1] not in _BEHIND and self._more():
                continue  # the value may be a number whose last digits are not read yet
            self._at = end
            return value

    def _more(self) -> bool:
        piece = self._file.read(max(_PIECE, len(self._text) - self._at))
        self._text = self._text[self._at :] + piece
        self._at = 0
        return bool(piece)
