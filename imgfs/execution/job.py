"""What a supervisor is started with: one JSON argument that names the record and the descriptors it inherits."""

from __future__ import annotations

import msgspec

from imgfs.execution.record import Runtime

NONE = -1
"""In place of a descriptor: none."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors are numbers that are open in the new process."""

    state: str
    id: str
    lock: int
    """The record's lock, held."""
    client: int
    """A control connection to whoever starts it: gets the first answer when the program runs, or why it does not."""
    stdin: int = NONE
    stdout: int = NONE
    stderr: int = NONE
    """Where what the container writes goes besides the log."""
    terminal: int = NONE
    """A stream socket to whoever has the terminal."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of that terminal."""
    runtimes: list[Runtime]
    """To be tried in this order."""
    deadline: float
    log_bytes: int
    is_logged: bool
    is_new: bool
    """Whether the container goes if it cannot be started."""
