"""One process a state directory: a flock that goes with the process, however it ends, and tells who holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from imgfs.errors import Busy, from_os


@contextmanager
def locked(state: Path, purpose: str) -> Generator[None]:
    """Hold `state` while the block runs; whoever comes meanwhile is told `purpose`. Raises Busy, naming the holder."""
    path = state / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os(error, str(path)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 4096, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise Busy(f"{state}: is in use by {holder}; name another state directory with --state") from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"pid {os.getpid()} {purpose}\n".encode(), 0)
    try:
        yield
    finally:
        os.close(file)
