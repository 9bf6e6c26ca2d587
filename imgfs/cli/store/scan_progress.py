"""Progress of a command that reads a whole state directory: one line on a terminal, nothing otherwise."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import click

from imgfs.cli.failure import printable
from imgfs.cli.table import human_size

_STEP = 26
"""The line is redrawn every 2 ** 26 bytes and for each object."""
_WIDTH = 60


class Reading:
    """The number of bytes read, the expected total, and the current object."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._read = 0
        self._total = 0
        self._place = ""

    def expect(self, total: int) -> None:
        """Set the approximate total."""
        self._total = total

    def at(self, place: str) -> None:
        """Set the object that is being read."""
        self._place = place
        self._draw()

    def moved(self, count: int) -> None:
        """Add `count` bytes."""
        before, self._read = self._read, self._read + count
        if before >> _STEP != self._read >> _STEP:
            self._draw()

    def clear(self) -> None:
        """Remove the line."""
        if self._is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _draw(self) -> None:
        if self._is_shown:
            total = f" of {human_size(self._total)}" if self._total else ""
            line = f"read {human_size(self._read)}{total}  {printable(self._place)[:_WIDTH]}"
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)


@contextmanager
def reading() -> Generator[Reading]:
    """Show a progress line on stderr while the context is open, if stderr is a terminal."""
    progress = Reading(is_shown=sys.stderr.isatty())
    try:
        yield progress
    finally:
        progress.clear()
