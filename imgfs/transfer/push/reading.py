"""A stored blob as what a request sends: in pieces, from anywhere, and checked when somebody doubts it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager

from imgfs.aio.threads import read_at, run_cpu
from imgfs.content.store import ContentStore
from imgfs.errors import from_os
from imgfs.oci.digest import Digest
from imgfs.registry.http.outgoing import Outgoing

PIECE = 512 << 10
Advance = Callable[[int], object]


def _nobody(_: int) -> None:
    """Nobody wants to know."""


class FilePieces(AsyncIterator[bytes]):
    """Bytes `start` to `end` of the open file `file`. Raises StorageFailed, naming `subject`, where it is shorter.

    `advance` is told the size of each piece when the next one is wanted, as then it is sent.
    """

    def __init__(self, file: int, start: int, end: int, subject: str, advance: Advance) -> None:
        self._file = file
        self._position = start
        self._end = end
        self._subject = subject
        self._advance = advance
        self._taken = 0

    async def __anext__(self) -> bytes:
        self._advance(self._taken)
        size = self._taken = min(PIECE, self._end - self._position)
        if not size:
            raise StopAsyncIteration
        piece = await read_at(self._file, size, self._position, self._subject)
        self._position += size
        return bytes(piece)


class StoredBlob:
    """An open blob of the content store; `read` is what uploads take."""

    def __init__(self, file: int, digest: Digest, advance: Advance) -> None:
        self._file = file
        self._digest = digest
        self._advance = advance

    def read(self, start: int, end: int) -> Outgoing:
        """Bytes `start` to `end`, as often as they are asked for."""
        subject = f"content {self._digest}"
        return Outgoing(end - start, lambda: FilePieces(self._file, start, end, subject, self._advance))

    async def is_sound(self) -> bool:
        """Whether the bytes on disk are still those of the digest. Raises StorageFailed."""
        return await run_cpu(self._digest_of_file) == self._digest

    def _digest_of_file(self) -> Digest:
        try:
            with open(os.dup(self._file), "rb", buffering=0) as file:
                file.seek(0)
                return Digest.from_hash(hashlib.file_digest(file, self._digest.algorithm))
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None


@contextmanager
def opened(content: ContentStore, digest: Digest, advance: Advance = _nobody) -> Generator[StoredBlob]:
    """A stored blob for as long as the context lasts, whoever removes it meanwhile. Raises NotFound, StorageFailed.

    `advance` is told how many bytes were read of it.
    """
    file = content.open(digest)
    try:
        yield StoredBlob(file, digest, advance)
    finally:
        os.close(file)
