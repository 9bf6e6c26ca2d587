"""Structured logs: one JSON object per line in the state directory (`.imgfs/log`).

A daemon in the foreground also logs to stderr. Packages log through `logging.getLogger("imgfs.<package>")` and pass the
facts of an event as `extra`. Text that looks like a credential is removed from every line: imgfs's own messages contain
none, but a traceback of a library may.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

ASIDE = "log.1"
"""Name of the previous log file, after rotation."""

LINE_MAX = 32 << 10
"""Largest line in bytes. The log's size limit has room for several such lines."""

_EVENT_KEPT, _CUT_KEPT = 1000, 8 << 10
_UNWRITTEN_KEPT = 1000
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Minimum log level and its syslog(3) priority in the journal. Lower levels have priority 7 (debug)."""
_SECRETS = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@\"'\\]+@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"(\bhttps?://[^\s\"'?\\]+\?)[^\s\"'\\]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(authorization\W{1,6}(?:bearer|basic)\s+)[^\s\"'\\]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "***"),
)
"""Patterns and their replacements: user info in URLs, URL queries (signed URLs), Authorization headers, JSON web
tokens."""


class JsonLines(logging.Formatter):
    """Format a record as one JSON line: timestamp, level, logger, event, facts, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline. If it is too long, only its start is kept, as `cut`."""
        head = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": redacted(record.getMessage()),
        }
        line = head | {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = redacted(json.dumps(line, default=str))
        if len(text) <= LINE_MAX:
            return text
        return json.dumps(head | {"event": head["event"][:_EVENT_KEPT], "cut": text[:_CUT_KEPT]})


class JournalLines(JsonLines):
    """JsonLines with a priority prefix, which the journal reads from a service's stderr (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `<priority>` followed by the line."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{super().format(record)}"


class LogFile(RotatingFileHandler):
    """The log file in the state directory.

    Lines that cannot be written stay in memory, up to a limit, until the process ends. On a full or read-only disk they
    are the only record of failures.
    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, maxBytes=size, backupCount=1, delay=True)
        self.unwritten: deque[str] = deque(maxlen=_UNWRITTEN_KEPT)

    def handleError(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.unwritten.append(self.format(record))


def configure_log(path: Path, level: str, size: int, *, to_stderr: bool) -> None:
    """Log records of `level` and above to `path`, and to stderr if `to_stderr`.

    `path` and the previous file have `size` bytes at most, each. Lines that cannot be written are kept for
    `unwritten_lines`. A log failure never fails a request.
    """
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [LogFile(path, size)]
    handlers[0].setFormatter(JsonLines())
    if to_stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setFormatter(JournalLines() if is_journal(sys.stderr, os.environ) else JsonLines())
    logger = logging.getLogger("imgfs")
    logger.setLevel(level.upper())
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether `stream` is connected to the journal: $JOURNAL_STREAM names the device and inode of `stream`.

    The variable alone is not enough: children inherit it even if their stderr is redirected (systemd.exec(5)).
    """
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def redacted(text: str) -> str:
    """Return `text` with everything that looks like a credential replaced."""
    for pattern, left in _SECRETS:
        text = pattern.sub(left, text)
    return text


def unwritten_lines() -> bytes:
    """Return the latest lines that this process could not write to its log file, each with its newline."""
    files = [handler for handler in logging.getLogger("imgfs").handlers if isinstance(handler, LogFile)]
    return "".join(f"{line}\n" for file in files for line in file.unwritten).encode()
