"""Export a snapshot's own changes as a layer: an uncompressed tar (image-spec, layer.md, "Representing Changes").

The export is reproducible: the same changes give the same bytes, and so the same digest, on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

from imgfs.errors import Busy, ImgfsError, NotPermitted, from_os
from imgfs.layers.entry import EntryKind
from imgfs.layers.header import BLOCK
from imgfs.snapshots.encode import encode_entry
from imgfs.snapshots.upper import KERNEL, Change, Dialect, read_upper

PIECE = 1 << 20
_END = bytes(2 * BLOCK)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def export_layer(upper: Path, dialect: Dialect = KERNEL) -> Generator[bytes]:
    """Yield the tar in pieces of about 1 MiB. Files are written in full, holes as zeros.

    The root directory has an entry.

    Blocks, so run it in a thread. Raises Busy if a file changes during the export (an active snapshot in use),
    Unsupported for a file that no layer can hold (upper.py), NotPermitted if an ordinary user cannot read a file,
    NoSpace, StorageFailed. Closing the generator stops the export.
    """
    try:
        yield from _gathered(_records(upper, dialect))
    except FileNotFoundError as error:
        raise Busy(
            f"{upper}: {os.fsdecode(error.filename or '')!r} was removed during the export; "
            "end the processes that write to the snapshot and try again"
        ) from None
    except PermissionError as error:
        name = os.fsdecode(os.path.basename(error.filename or ""))
        raise NotPermitted(
            f"{upper}: {name!r} cannot be read by this user; run `chmod u+r` on it, or export as root"
        ) from None
    except OSError as error:
        raise from_os(error, str(upper)) from None


def layer_size(upper: Path, dialect: Dialect = KERNEL) -> int:
    """Return the size of the tar in bytes from one walk that opens no file. Blocks.

    Raises Unsupported, NoSpace, StorageFailed.
    """
    try:
        return len(_END) + sum(map(_space, read_upper(upper, dialect)))
    except OSError as error:
        raise from_os(error, str(upper)) from None


def _space(change: Change) -> int:
    """Return the size of an entry in the tar: its header, and its payload padded to blocks."""
    size = change.entry.size if change.entry.kind is EntryKind.REGULAR else 0
    return len(encode_entry(change.entry)) + size + -size % BLOCK


def _records(upper: Path, dialect: Dialect) -> Iterator[bytes]:
    for change in read_upper(upper, dialect):
        yield encode_entry(change.entry)
        if change.entry.kind is EntryKind.REGULAR and change.entry.size:
            yield from _payload(change)
    yield _END


def _payload(change: Change) -> Iterator[bytes]:
    """Yield as many bytes as the header declares, and the padding."""
    left = change.entry.size
    file = os.open(change.place, _FILE)
    try:
        while left:
            piece = os.read(file, min(left, PIECE))
            if not piece:
                raise _changed(change)
            left -= len(piece)
            yield piece
        now = os.fstat(file)
        if (now.st_size, now.st_mtime_ns) != (change.entry.size, change.entry.mtime):
            raise _changed(change)
    finally:
        os.close(file)
    yield bytes(-change.entry.size % BLOCK)


def _changed(change: Change) -> ImgfsError:
    return Busy(
        f"{change.entry.path[-200:]!r}: changed during the export; end the processes that write to it and try again"
    )


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join the pieces into larger ones."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
