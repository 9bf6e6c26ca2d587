"""The anonymous writer: one blob of known digest and size on its way in, of which nothing stays unless it verifies.

For bytes that are not worth resuming, or whose ref somebody else is writing; ingests/ has the others.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.content.commits import Naming
from imgfs.content.unproven import AHEAD_BYTES
from imgfs.disk.calls import write_all
from imgfs.errors import TooLarge, VerificationFailed, from_os
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.content.store import ContentStore


class BlobWriter:
    """Bytes are hashed as they come, and nothing is stored that does not verify.

    Use as an async context; leaving it without `commit` removes every trace. Memory use is one piece.
    """

    def __init__(self, store: ContentStore, digest: Digest, total: int, temporary: Path) -> None:
        self._store = store
        self._digest = digest
        self._total = total
        self._temporary = temporary
        self._hash = digest.new_hash()
        self._file: int | None = None
        self.offset = 0

    async def __aenter__(self) -> BlobWriter:
        try:
            self._file = await run_disk(self._store.disk.create, self._temporary)
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            with suppress(OSError):
                self._store.disk.unlink(self._temporary)

    async def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises TooLarge past the total, NoSpace or StorageFailed."""
        if self.offset + len(piece) > self._total:
            raise TooLarge(f"content {self._digest}: more than the {self._total} bytes it was declared with")
        await run_cpu(self._append, piece)

    async def commit(self) -> None:
        """Verify and store; on return the blob survives a power cut. Once the disk has it, it is not cancelled.

        Raises VerificationFailed, NoSpace or StorageFailed.
        """
        assert self._file is not None
        if self.offset != self._total:
            raise VerificationFailed(f"content {self._digest}: got {self.offset} bytes, expected {self._total}")
        if self._hash.hexdigest() != self._digest.hex:
            got = Digest.from_hash(self._hash)
            raise VerificationFailed(f"content {self._digest}: the bytes have digest {got}; they are not kept")
        try:
            final, is_small = self._store.path(self._digest), self._total <= AHEAD_BYTES
            naming = Naming(self._temporary, final, self._file, goes_ahead=is_small)
            await self._store.publish(self._digest, naming)
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None
        os.close(self._file)
        self._file = None

    def _append(self, piece: bytes | memoryview) -> None:
        assert self._file is not None
        self._hash.update(piece)
        try:
            write_all(self._store.disk, self._file, piece, self.offset)
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None
        self.offset += len(piece)
