"""Structured logs: one JSON object a line in the state directory (`.imgfs/log`), and for people on stderr in front."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
KEPT = 16 << 20
"""Bytes: a larger log is moved to `log.1` when the daemon starts."""


def configure_log(path: Path, level: str, *, to_stderr: bool) -> None:
    """Send everything from `level` up to `path`, or to stderr as well as readable lines."""
    if path.exists() and path.stat().st_size > KEPT:
        path.replace(path.with_suffix(".1"))
    file = path.open("a", buffering=1)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(_Tee(file, sys.stderr) if to_stderr else file),  # pyright: ignore[reportArgumentType]
        cache_logger_on_first_use=False,
    )


class _Tee:
    """Writes each line to both files."""

    def __init__(self, *files: TextIO) -> None:
        self._files = files

    def write(self, text: str) -> None:
        for file in self._files:
            file.write(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()
