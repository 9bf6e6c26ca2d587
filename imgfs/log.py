"""Structured logs: one JSON object a line in the state directory (`.imgfs/log`), and in front on stderr as well.

Rooms log by `logging.getLogger("imgfs.<room>")`, with the facts of an event as `extra`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

KEPT = 16 << 20
"""Bytes: a log that would grow beyond moves to `log.1`."""

_UNWRITTEN_KEPT = 1000
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one line: timestamp, level, logger, event, the facts, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class LogFile(RotatingFileHandler):
    """The file in the state directory. The latest lines that it does not take are kept until the process ends.

    On a full disk and on a read-only one these are what there is to read of its failures.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=KEPT, backupCount=1, delay=True)
        self.unwritten: deque[str] = deque(maxlen=_UNWRITTEN_KEPT)

    def handleError(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.unwritten.append(self.format(record))


def configure_log(path: Path, level: str, *, to_stderr: bool) -> None:
    """Send everything from `level` up to `path`, and to stderr if that is wanted.

    A line that cannot be written is in `unwritten_lines`; logging never fails anybody's request.
    """
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [LogFile(path)]
    if to_stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    logger = logging.getLogger("imgfs")
    logger.setLevel(level.upper())
    logger.propagate = False
    for handler in handlers:
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)


def unwritten_lines() -> bytes:
    """The latest lines of this process that its log file did not take, each with its end."""
    files = [handler for handler in logging.getLogger("imgfs").handlers if isinstance(handler, LogFile)]
    return "".join(f"{line}\n" for file in files for line in file.unwritten).encode()
