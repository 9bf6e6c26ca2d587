"""Reads a stored blob as the body of a request, in pieces and from any offset. Checks its digest on request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager

from imgfs.aio.threads import read_at, run_cpu
from imgfs.content.store import ContentStore
from imgfs.errors import from_os
from imgfs.oci.digest import Digest
from imgfs.registry.http.request import Outgoing

PIECE = 512 << 10
Advance = Callable[[int], object]


def _nobody(_: int) -> None:
    """Do nothing."""


class FilePieces(AsyncIterator[bytes]):
    """Iterates over bytes `start` to `end` of the descriptor `file`. Raises StorageFailed for a shorter file.

    `subject` names the file in errors. `advance` is called with the size of each piece when the next one is requested,
    because only then the piece has been sent.
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
    """An open blob of the content store. Uploads use `read`."""

    def __init__(self, file: int, digest: Digest, advance: Advance) -> None:
        self._file = file
        self._digest = digest
        self._advance = advance

    def read(self, start: int, end: int) -> Outgoing:
        """Return bytes `start` to `end` as a body that can be sent several times."""
        subject = f"content {self._digest}"
        return Outgoing(end - start, lambda: FilePieces(self._file, start, end, subject, self._advance))

    async def is_sound(self) -> bool:
        """Return whether the bytes on disk still have the digest. Raises StorageFailed."""
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
    """Open a stored blob for the duration of the context, also if it is removed meanwhile.

    `advance` is called with the number of bytes that were sent. Raises NotFound, StorageFailed.
    """
    file = content.open(digest)
    try:
        yield StoredBlob(file, digest, advance)
    finally:
        os.close(file)
