"""Format results: aligned tables for people, JSON for programs, readable sizes and times."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence

from imgfs.cli.failure import printable

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Format a table with columns two spaces apart. Columns in `right` are right-aligned. No line ends in spaces."""
    return "\n".join(table_lines(head, rows, right))


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> Iterator[str]:
    """Yield the lines of a table that `render_table` would format."""
    widths = [len(cell) for cell in head]
    for row in rows:
        widths = [max(width, len(printable(cell))) for width, cell in zip(widths, row, strict=True)]
    for line in (head, *rows):
        cells = (
            printable(cell).rjust(width) if column in right else printable(cell).ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def render_json(value: object) -> str:
    """Format a value as indented JSON."""
    return json.dumps(value, indent=2)


def human_size(count: int) -> str:
    """Format a number of bytes in decimal units, as registries and disks use them: `57.2 MB`."""
    size, unit = float(count), 0
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def human_seconds(seconds: float) -> str:
    """Format a duration in whole seconds, minutes or hours: `48s`, `3m12s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def short_digest(digest: str) -> str:
    """Shorten a digest to its algorithm and twelve hex digits."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"{algorithm}:{hexadecimal[:12]}"


def local_time(moment: int) -> str:
    """Format ns since the epoch to the minute, in the local time zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment // 10**9))


def utc_time(moment: int) -> str:
    """Format ns since the epoch to the second, as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment // 10**9))
