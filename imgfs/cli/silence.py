"""Suppress logging in commands that use modules of the daemon: such a command reports failures itself."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def silent() -> Generator[None]:
    """Disable logging in the context; without this, a plugin that cannot be imported prints a traceback on stderr."""
    logger = logging.getLogger("imgfs")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
