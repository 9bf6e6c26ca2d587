"""Directories as descriptors: what lies below one has a short path then, whatever its own is, and cannot be swapped."""

from __future__ import annotations

import os
import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def opened(directory: str | Path) -> Generator[int]:
    """A directory, by its path alone: nobody is asked what is in it. Raises OSError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def keep_only(descriptor: int) -> None:
    """Close all that this process has open but `descriptor` and the three streams."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, open_files_max())


def open_files_max() -> int:
    """How many files this process and its children may have open at a time if they ask for it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def address(directory: int, name: str) -> str:
    """The path of a socket in an opened directory, for this process and others: sun_path holds 107 bytes."""
    return f"/proc/{os.getpid()}/fd/{directory}/{name}"
