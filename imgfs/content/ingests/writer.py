"""The truncatable, resumable writer of one ref. At most one lives at a time; store.py hands it out."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio

from imgfs.errors import ImgfsError, Invalid, NotPermitted, OffsetMismatch, TooLarge
from imgfs.oci.digest import Digest

if TYPE_CHECKING:
    from imgfs.content.ingests.ingest import Ingest
    from imgfs.content.ingests.store import IngestStore
    from imgfs.content.store import BlobInfo


class Writer:
    """Appends to an ingest. Calls may come from several tasks, and take turns.

    A cancelled call has happened wholly or not at all; `offset` tells. Every method raises Cancelled once the ref was
    aborted, and AlreadyExists once its expected digest turned out to be stored. Use as an async context, or `close`.
    """

    def __init__(self, store: IngestStore, ingest: Ingest) -> None:
        self._store = store
        self._ingest = ingest
        self._is_closed = False

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def ref(self) -> str:
        """The ref, as it is called now."""
        return self._ingest.meta.ref

    @property
    def offset(self) -> int:
        """Where the next byte goes: so many are on disk."""
        return self._ingest.offset

    @property
    def total(self) -> int | None:
        """The declared size in bytes."""
        return self._ingest.meta.total

    @property
    def expected(self) -> Digest | None:
        """The declared digest."""
        return self._ingest.meta.expected

    async def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises what `write_at` raises."""
        async with self._turn() as ingest:
            if ingest.failed is not None:
                raise ingest.failed
            self._check_room(ingest.offset, piece)
            await ingest.append(piece)

    async def write_at(self, offset: int, piece: bytes | memoryview) -> None:
        """Append a piece at `offset`, which must be the current one; at 0, drop what there is and start again.

        Raises OffsetMismatch; TooLarge past the total; NoSpace (what fitted is kept, and the same write goes on from
        `offset` once there is room) and StorageFailed, both also for a sync in the background that failed before.
        """
        async with self._turn() as ingest:
            if offset not in (0, ingest.offset):
                raise ingest.failed or OffsetMismatch(
                    f"{ingest.subject}: got a write at byte {offset}, expected {ingest.offset}, or 0 to start again"
                )
            self._check_room(offset, piece)
            if offset == 0 and ingest.offset and piece:
                await ingest.restart()
            ingest.go_on()
            await ingest.append(piece)

    async def truncate(self, size: int) -> None:
        """0 starts again, the current size changes nothing. Raises Invalid for others."""
        async with self._turn() as ingest:
            if size not in (0, ingest.offset):
                raise Invalid(f"{ingest.subject}: truncate to {size}; expected 0 or its size, {ingest.offset}")
            if size == 0 and (ingest.offset or ingest.failed):
                await ingest.restart()

    async def restart(self) -> None:
        """Drop the bytes and start again at 0; total and expected stay."""
        await self.truncate(0)

    async def fsync(self) -> None:
        """On return all bytes so far survive a power cut. Commits nothing.

        Raises NoSpace or StorageFailed; a failed sync is final, and `offset` is back at the last good one.
        """
        async with self._turn() as ingest:
            if ingest.failed is not None:
                raise ingest.failed
            try:
                await ingest.record()
            except ImgfsError:
                await ingest.cut()
                raise
            # The sync that failed may have been another's, which this one waited for.
            ingest.check_alive()
            await ingest.check_kept()

    async def commit(self, digest: str | None = None) -> BlobInfo:
        """Close, verify and store: as `digest`, else as what was expected, else as what the bytes are.

        Nobody else gets the ref in between. Raises as IngestStore.commit, and Invalid for a malformed digest.
        """
        wanted = None if digest is None else Digest.parse(digest)
        async with self._turn() as ingest:
            wanted = wanted or self.expected or await ingest.whole_digest()
        await self.close()
        return await self._store.commit(self.ref, wanted)

    async def close(self) -> None:
        """Release the ref, without a commit; what was written stays for whoever resumes it. Never raises."""
        if not self._is_closed:
            self._is_closed = True
            with trio.CancelScope(shield=True):
                async with self._ingest.lock:
                    self._ingest.rest()
                    self._store.release(self._ingest)

    def _check_room(self, offset: int, piece: bytes | memoryview) -> None:
        total = self._ingest.meta.total
        if total is not None and offset + len(piece) > total:
            raise TooLarge(f"{self._ingest.subject}: more than the {total} bytes it was declared with")

    def _turn(self) -> AbstractAsyncContextManager[Ingest]:
        if self._is_closed:
            raise NotPermitted(f"{self._ingest.subject}: its writer was closed; open another")
        return self._ingest.turn()
