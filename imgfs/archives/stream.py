"""An archive as a stream of bytes: a file or a pipe, compressed or not.

tar_reader.py parses the tar.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from imgfs.archives.contract import SoFar
from imgfs.errors import Malformed, Truncated
from imgfs.layers.compression import NONE, Compression, Compressions, Piece

PIECE = 1 << 20


class ByteStream(Protocol):
    """Bytes from the first to the last."""

    @property
    def position(self) -> int:
        """The number of bytes consumed."""
        ...

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the end. Raises Malformed."""
        ...

    def skip(self, size: int) -> None:
        """Skip `size` bytes. Raises Truncated, Malformed."""
        ...

    def back_to(self, position: int) -> bool:
        """Go back to `position`; return False if that is not possible."""
        ...

    def finish(self) -> None:
        """Read the rest, so that the writer of a pipe does not get SIGPIPE. Raises Malformed, Truncated."""
        ...


def open_stream(file: BinaryIO, compressions: Compressions, read: SoFar = lambda _: None) -> ByteStream:
    """Return the decompressed bytes of `file`, a regular file or a pipe. The caller closes the file.

    The first bytes of the file decide the compression. `read` receives the number of bytes of `file` read so far.
    """
    is_plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() == 0
    head = file.read(compressions.magic_size)
    compression = compressions.detect(head)
    if is_plain and compression is NONE:
        file.seek(0)
        return FileStream(file, read)
    return PieceStream(_pieces(file, head, compression, read))


class FileStream:
    """A regular file. Skipped bytes are not read."""

    def __init__(self, file: BinaryIO, read: SoFar) -> None:
        self.position = 0
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._tell = read

    def read(self, size: int) -> bytes:
        """See ByteStream."""
        data = self._file.read(size)
        self.position += len(data)
        self._tell(self.position)
        return data

    def skip(self, size: int) -> None:
        """See ByteStream."""
        if self.position + size > self._size:
            raise cut(self._size)
        self.back_to(self.position + size)
        self._tell(self.position)

    def back_to(self, position: int) -> bool:
        """See ByteStream."""
        self._file.seek(position)
        self.position = position
        return True

    def finish(self) -> None:
        """See ByteStream."""
        self._tell(self._size)


class PieceStream:
    """Pieces of any length, in order."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.position = 0
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """See ByteStream."""
        parts: list[Piece] = []
        while size and (self._rest or self._refill()):
            part = self._rest[:size]
            self._rest = self._rest[len(part) :]
            size -= len(part)
            self.position += len(part)
            parts.append(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """See ByteStream."""
        while size:
            if not (piece := self.read(min(size, PIECE))):
                raise cut(self.position)
            size -= len(piece)

    def back_to(self, position: int) -> bool:
        """See ByteStream."""
        return position == self.position

    def finish(self) -> None:
        """See ByteStream."""
        while self.read(PIECE):
            pass

    def _refill(self) -> bool:
        for piece in self._pieces:
            if piece:
                self._rest = memoryview(bytes(piece))
                return True
        return False


def _pieces(file: BinaryIO, head: bytes, compression: Compression, read: SoFar) -> Iterator[Piece]:
    """Yield the decompressed bytes of `head` and of the rest of `file`."""
    decompressor = compression.open()
    taken, piece = 0, head
    while piece:
        taken += len(piece)
        yield from decompressor.feed(piece)
        read(taken)
        piece = file.read(PIECE)
    try:
        decompressor.close()
    except Malformed as error:
        raise Truncated(f"archive: {error.message}; get the complete archive and import again") from None


def cut(size: int) -> Truncated:
    """Return the error for an archive that ends after `size` bytes, inside a member."""
    return Truncated(f"archive: ends after {size} bytes, inside a member; get the complete archive and import again")
