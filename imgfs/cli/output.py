"""Write exported data to stdout, or to a file that gets its name only when it is complete and durable."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imgfs.cli.failure import from_os_error
from imgfs.disk.durable import publish, temporary_name

PIECE = 1 << 20

Draw = Callable[[int], None]
"""Called with the number of bytes written so far."""


def write_out(pieces: Iterable[bytes], draw: Draw) -> None:
    """Write to stdout and flush. Flushing here lets the caller handle a closed pipe."""
    try:
        _write(pieces, sys.stdout.buffer, draw)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise unwritten(error, "stdout") from None


def write_file(pieces: Iterable[bytes], path: Path, draw: Draw) -> str:
    """Write to a file that gets its name when it is complete. An existing pipe or device is written to directly.

    Returns the SHA-256 of the data in hex.
    """
    final = Path(os.path.realpath(path))
    try:
        if final.exists() and not stat.S_ISREG(final.stat().st_mode):
            with final.open("wb") as file:
                return _write(pieces, file, draw)
        return _write_whole(pieces, final, draw)
    except OSError as error:
        raise unwritten(error, str(path)) from None


def unwritten(error: OSError, where: str) -> Exception:
    """Return what to raise for a failed write: a quiet exit if the reader closed the pipe, else a Failure."""
    return error if error.errno == errno.EPIPE else from_os_error(error, where)


@contextmanager
def progress(total: int | None, *, is_wanted: bool) -> Generator[Draw]:
    """Yield a function that draws a progress bar, if it is wanted and stderr is a terminal. `total` may be None."""
    if not is_wanted or not sys.stderr.isatty():
        yield lambda done: None
        return
    from imgfs.cli.progress import byte_progress

    with byte_progress(total) as draw:
        yield draw


def _write(pieces: Iterable[bytes], file: BinaryIO, draw: Draw) -> str:
    running, done = hashlib.sha256(), 0
    for piece in pieces:
        file.write(piece)
        running.update(piece)
        done += len(piece)
        draw(done)
    return running.hexdigest()


def _write_whole(pieces: Iterable[bytes], final: Path, draw: Draw) -> str:
    """Write to an unnamed file first, if the filesystem supports it, so that a killed command leaves nothing behind."""
    temporary = final.parent / temporary_name()
    try:
        with _nameless(final.parent) or temporary.open("xb") as file:
            digest = _write(pieces, file, draw)
            file.flush()
            os.fsync(file.fileno())
            if not os.fstat(file.fileno()).st_nlink:
                _name(file, temporary)
        publish(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest


def _nameless(directory: Path) -> BinaryIO | None:
    """Create a file without a name (open(2), O_TMPFILE). Returns None if the filesystem does not support it."""
    try:
        return os.fdopen(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666), "wb")
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def _name(file: BinaryIO, path: Path) -> None:
    """Give the file its first name. os.link follows /proc/self/fd links only if a directory descriptor is passed."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)
