"""What a supervisor waits for, or does beside."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

from imgfs.execution.control import Connection

_LEAVING_SECONDS = 0.1
"""What whoever was told the last word has for himself."""


def begun(work: Callable[[], None]) -> Callable[[], None]:
    """Begin `work` beside this thread; who calls the result waits for its end.

    Where there can be no other thread (the limit for processes of who started it) he does it himself, then.
    """
    thread = threading.Thread(target=work)
    try:
        thread.start()
    except RuntimeError:
        return work
    return thread.join


def is_gone(client: Connection) -> bool:
    """Whether the other side has left, or says before it is answered that it does not want to wait any more."""
    return is_ready(client.fileno())


def is_ready(descriptor: int) -> bool:
    """Whether it can be read now; of a pidfd, whether the process has ended."""
    return _poll(descriptor, 0)


def wait_left(client: Connection) -> None:
    """Wait for a moment until who was told the last word has ended: what is left would share a processor with him.

    For nothing but speed: he may go on.
    """
    with suppress(OSError):
        process = os.pidfd_open(client.peer())
        try:
            _poll(process, _LEAVING_SECONDS)
        finally:
            os.close(process)


def _poll(descriptor: int, seconds: float) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))
