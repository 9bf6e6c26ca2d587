"""The step from an unfinished write to a stored blob, and the checks before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import trio
from msgspec import UnsetType

from imgfs.content.commits import Naming
from imgfs.content.ingests.directories import remove_committed
from imgfs.content.ingests.ingest import Ingest
from imgfs.content.ingests.table import IngestTable
from imgfs.content.store import BlobInfo, ContentStore
from imgfs.errors import AlreadyExists, Invalid, NotFound, VerificationFailed, from_os
from imgfs.oci.digest import Digest


class Committer:
    """Commits the ingests of one store. Commits of the same blob run one after the other."""

    def __init__(self, content: ContentStore, table: IngestTable) -> None:
        self._content = content
        self._table = table
        self._committing: dict[Digest, trio.Event] = {}

    async def commit(self, ingest: Ingest, digest: Digest) -> BlobInfo:
        """Verify the bytes and store them as `digest`; the ref is then free. The caller holds the ingest and its turn.

        Raises, and can be cancelled, as IngestStore.commit.
        """
        async with self._alone(digest):
            if digest in self._content:
                self._content.rely(digest)
                reason = stored_already(digest)
                await self._table.remove(ingest, reason)
                raise reason
            await verify(ingest, digest)
            with trio.CancelScope(shield=True):
                async with ingest.sync_paused():
                    await ingest.check_kept()
                    await self._publish(ingest, digest)
                    ingest.end(NotFound(f"{ingest.subject}: was committed as {digest}"))
                    self._table.forget(ingest)
            info = self._content.info(digest)
            assert info is not None
            return info

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncGenerator[None]:
        """Wait for another commit of the same blob: the blob is stored then, and these bytes are not needed."""
        while digest in self._committing:
            await self._committing[digest].wait()
        self._committing[digest] = trio.Event()
        try:
            yield
        finally:
            self._committing.pop(digest).set()

    async def _publish(self, ingest: Ingest, digest: Digest) -> None:
        """Publish in one trip to a thread, because more trips would take longer than the disk.

        Truncating needs another.
        """
        file = await ingest.open_file() if ingest.is_ragged else None
        clear = partial(remove_committed, self._content.disk, ingest.path)
        final, durable, ahead = self._content.path(digest), ingest.is_durable, ingest.goes_ahead
        naming = Naming(ingest.data, final, file, are_durable=durable, goes_ahead=ahead, clear=clear)
        try:
            await self._content.publish(digest, naming)
        except OSError as error:
            if not naming.is_lost:
                raise from_os(error, ingest.subject) from None
            failure = ingest.fall_back(error)
            await ingest.cut()
            raise failure from None
        finally:
            ingest.close_file()


TOTAL_MAX = 2**53


async def verify(ingest: Ingest, digest: Digest) -> None:
    """Raise the reason if the bytes must not be stored as `digest`."""
    meta = ingest.meta
    await ingest.check_kept()
    if meta.total not in (None, ingest.offset):
        raise VerificationFailed(f"{ingest.subject}: got {ingest.offset} bytes, expected {meta.total}; send the rest")
    if meta.expected not in (None, digest):
        raise VerificationFailed(f"{ingest.subject}: expected {meta.expected}, commit says {digest}")
    ingest.hash_with(digest.algorithm)
    await ingest.catch_up()
    await ingest.check_kept()
    if ingest.running.digest != digest:
        got = ingest.running.digest
        raise VerificationFailed(f"{ingest.subject}: the bytes have digest {got}, commit says {digest}; not stored")


def stored_already(digest: Digest) -> AlreadyExists:
    """Return the error for bytes that are already stored."""
    return AlreadyExists(f"content {digest}: is stored already; nothing to send")


def check_total(total: int | UnsetType | None) -> None:
    """Raise Invalid for a size that no blob can have."""
    if isinstance(total, int) and not 0 <= total <= TOTAL_MAX:
        raise Invalid(f"ingest total {total}: expected 0 to {TOTAL_MAX}")
