"""How far a command is that reads a whole state directory: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import click

from imgfs.cli.failure import printable
from imgfs.cli.table import human_size

_STEP = 26
"""The line changes each 2 ** 26 bytes, and with each thing that is looked at."""
_WIDTH = 60


class Reading:
    """Bytes read, of how many, and where."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._read = 0
        self._total = 0
        self._place = ""

    def expect(self, total: int) -> None:
        """About so many bytes will be read."""
        self._total = total

    def at(self, place: str) -> None:
        """This is looked at now."""
        self._place = place
        self._draw()

    def moved(self, count: int) -> None:
        """So many bytes more were read."""
        before, self._read = self._read, self._read + count
        if before >> _STEP != self._read >> _STEP:
            self._draw()

    def clear(self) -> None:
        """Take the line away."""
        if self._is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _draw(self) -> None:
        if self._is_shown:
            total = f" of {human_size(self._total)}" if self._total else ""
            line = f"read {human_size(self._read)}{total}  {printable(self._place)[:_WIDTH]}"
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)


@contextmanager
def reading() -> Generator[Reading]:
    """A line on stderr while the block runs, if that is a terminal."""
    progress = Reading(is_shown=sys.stderr.isatty())
    try:
        yield progress
    finally:
        progress.clear()
