"""Commands that use rooms which log: what these have to say is told by the command, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def silent() -> Generator[None]:
    """Nothing is logged while the block runs; a plugin that cannot be imported would be a traceback on stderr."""
    logger = logging.getLogger("imgfs")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
