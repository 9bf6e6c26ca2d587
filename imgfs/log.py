"""Structured logs: one JSON object a line in the state directory (`.imgfs/log`), and in front on stderr as well.

Rooms log by `logging.getLogger("imgfs.<room>")`, with the facts of an event as `extra`. What looks like a credential is
left out of every line, whoever put it there: no message should hold one, and a traceback of a library may.
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
"""What a log that would grow too large is called from then on, beside the new one."""

LINE_MAX = 32 << 10
"""Bytes of a line; the log has room for several."""

_EVENT_KEPT, _CUT_KEPT = 1000, 8 << 10
_UNWRITTEN_KEPT = 1000
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels and the priorities of syslog(3) that they are to the journal; below it is 7."""
_SECRETS = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@\"'\\]+@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"(\bhttps?://[^\s\"'?\\]+\?)[^\s\"'\\]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(authorization\W{1,6}(?:bearer|basic)\s+)[^\s\"'\\]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "***"),
)
"""Users in URLs, queries (of signed ones), Authorization headers, JSON web tokens; and what is left of them."""


class JsonLines(logging.Formatter):
    """A record as one line: timestamp, level, logger, event, the facts, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end. Of one that is too long its beginning is told as `cut`."""
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
    """The same with the priority in front, as the journal reads it from a service's stderr (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """`<N>` and the line."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{super().format(record)}"


class LogFile(RotatingFileHandler):
    """The file in the state directory. The latest lines that it does not take are kept until the process ends.

    On a full disk and on a read-only one these are what there is to read of its failures.
    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, maxBytes=size, backupCount=1, delay=True)
        self.unwritten: deque[str] = deque(maxlen=_UNWRITTEN_KEPT)

    def handleError(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.unwritten.append(self.format(record))


def configure_log(path: Path, level: str, size: int, *, to_stderr: bool) -> None:
    """Send everything from `level` up to `path`, and to stderr if that is wanted.

    Both files, `path` and the one before it, have `size` bytes at most. A line that cannot be written is in
    `unwritten_lines`; logging never fails anybody's request.
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
    """Whether what is written to `stream` goes to the journal: $JOURNAL_STREAM names its device and inode.

    The variable is inherited by children whose stderr is something else (systemd.exec(5)).
    """
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def redacted(text: str) -> str:
    """`text` without what looks like a credential."""
    for pattern, left in _SECRETS:
        text = pattern.sub(left, text)
    return text


def unwritten_lines() -> bytes:
    """The latest lines of this process that its log file did not take, each with its end."""
    files = [handler for handler in logging.getLogger("imgfs").handlers if isinstance(handler, LogFile)]
    return "".join(f"{line}\n" for file in files for line in file.unwritten).encode()
