"""The content store as a library: the operations of the tree's content/ as calls, without FUSE and without a registry.

The names follow containerd (core/content: Provider, IngestManager, Manager). store.py and ingests/ do the work; this
module combines them for a program that owns a state directory.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgfs.aio.gather import plain_nursery
from imgfs.aio.threads import read_at, run_disk
from imgfs.content import labels as label_table
from imgfs.content.ingests.status import IngestStatus
from imgfs.content.ingests.store import IngestStore, IngestWriter
from imgfs.content.labels import Labels
from imgfs.content.opening import opened
from imgfs.content.store import ContentStore
from imgfs.database.database import Database
from imgfs.errors import Invalid, NotFound, NotPermitted, ReadOnly
from imgfs.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A stored blob: size in bytes, commit time (ns since the epoch), and labels sorted by key."""

    digest: Digest
    size: int
    committed: int
    labels: Mapping[str, bytes]


class ContentLibrary:
    """The stored blobs and unfinished writes of one state directory.

    Several tasks may call it at once. A change is durable when its call returns. Every change raises ReadOnly if the
    store was opened with `read_only` or lies on a read-only filesystem, and every call raises NotPermitted after
    `close`. A digest argument may be any text; Invalid is raised unless it is well-formed.
    """

    def __init__(self, root: Path, content: ContentStore, ingests: IngestStore) -> None:
        """Use `open_store` instead of calling this."""
        self._root = root
        self._stored = content
        self._unfinished = ingests
        self._is_closed = False

    @asynccontextmanager
    async def writer(
        self, ref: str, *, total: int | None = None, expected: str | None = None
    ) -> AsyncGenerator[IngestWriter]:
        """Start or resume the only writer of `ref`, at `writer.offset`.

        Leaving the context neither commits nor drops it.

        `total` (bytes) and `expected` are recorded and survive a crash, as the bytes do. Raises Invalid; Busy while
        another writer is open; AlreadyExists if the blob named by `ref` or `expected` is stored, so no byte needs to be
        sent; TooLarge, NoSpace, StorageFailed.
        """
        promised = None if expected is None else Digest.parse(expected)
        async with await self._changing.open(ref, total=total, expected=promised) as writer:
            yield writer

    async def commit(self, ref: str, digest: str) -> ContentInfo:
        """Verify the bytes of the idle ref `ref` and store them as `digest`; the blob then survives a power cut.

        Raises NotFound; Busy while a writer is open; VerificationFailed (the ingest stays); AlreadyExists (the ingest
        is removed); NoSpace, StorageFailed. Cancellation takes effect only during hashing.
        """
        await self._changing.commit(ref, Digest.parse(digest))
        return self.info(digest)

    async def abort(self, ref: str) -> None:
        """Drop an unfinished write; an open writer of it gets Cancelled. Raises NotFound, StorageFailed."""
        await self._changing.abort(ref)

    def status(self, ref: str) -> IngestStatus:
        """Return the status of an unfinished write. Never waits. Raises NotFound."""
        return self._ingests.status(ref)

    def list(self) -> tuple[IngestStatus, ...]:
        """Return the status of all unfinished writes, sorted by ref."""
        return tuple(sorted(self._ingests, key=lambda status: status.ref))

    def info(self, digest: str) -> ContentInfo:
        """Return size, time and labels of a stored blob. Raises NotFound."""
        wanted = Digest.parse(digest)
        found = self._content.info(wanted)
        if found is None:
            raise NotFound(f"content {digest}: is not stored here")
        return ContentInfo(wanted, found.size, found.committed, self._content.labels(wanted))

    def walk(self) -> Iterator[ContentInfo]:
        """Yield every stored blob, sorted by digest.

        A blob that is deleted during the walk is left out; one that is added may be missing.
        """
        for digest in sorted(found.digest for found in self._content):
            if digest in self._content:
                yield self.info(digest)

    async def update(self, digest: str, labels: Mapping[str, bytes | None]) -> ContentInfo:
        """Set labels, and remove those whose value is None; other labels stay. All changes are made or none.

        Raises NotFound, Invalid for a key or value that is not allowed, NoSpace, StorageFailed.
        """
        self._check_writable()
        await self._content.update_labels(Digest.parse(digest), labels)
        return self.info(digest)

    async def read_at(self, digest: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end, none behind it.

        Raises NotFound, Invalid for negative arguments, StorageFailed.
        """
        if offset < 0 or size < 0:
            raise Invalid(f"content {digest}: {size} bytes from {offset}: expected no negative numbers")
        file, end = self.open(digest), self.info(digest).size
        try:
            size = min(size, end - offset)
            return bytes(await read_at(file, size, offset, f"content {digest}")) if size > 0 else b""
        finally:
            os.close(file)

    def open(self, digest: str) -> int:
        """Return a file descriptor of a blob, which stays readable after `delete`. The caller closes it.

        Raises NotFound, StorageFailed.
        """
        return self._content.open(Digest.parse(digest))

    async def delete(self, digest: str) -> None:
        """Remove a blob and its labels, without checking for references. Raises NotFound, StorageFailed."""
        self._check_writable()
        await self._content.delete(Digest.parse(digest))

    async def close(self) -> None:
        """Make all unfinished writes durable and end every writer. A second call does nothing."""
        if not self._is_closed and not self._stored.is_read_only:
            await self._unfinished.close()
        self._is_closed = True

    @property
    def _content(self) -> ContentStore:
        self._check_open()
        return self._stored

    @property
    def _ingests(self) -> IngestStore:
        self._check_open()
        return self._unfinished

    @property
    def _changing(self) -> IngestStore:
        self._check_writable()
        return self._unfinished

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotPermitted(f"content store {self._root}: was closed; open it again")

    def _check_writable(self) -> None:
        self._check_open()
        if self._stored.is_read_only:
            raise ReadOnly(f"content store {self._root}: was opened for reading, or its filesystem is read-only")


@asynccontextmanager
async def open_store(
    path: str | Path, *, read_only: bool = False, era: str | None = None
) -> AsyncGenerator[ContentLibrary]:
    """Open the content store of the state directory `path`, which is created if it does not exist.

    The process holds the directory's lock in this context; Busy is raised while a daemon or another program holds it.
    Opening repairs what a crash left, as a daemon does: stored blobs are whole, and unfinished writes resume at what is
    on disk. At the end, unfinished writes are synced and open writers get Cancelled.

    With `read_only`, nothing is locked, repaired or changed: the caller sees the state of this moment, also while a
    daemon is running. Raises NotFound if `path` does not exist then, NoSpace, StorageFailed.

    `era` changes with every boot and every mount of the disk. By default it is read from /proc, which distinguishes
    fewer mounts than a daemon can. Therefore unfinished writes of a killed daemon resume at their last sync.
    """
    state = await run_disk(Path(path).absolute)
    with ExitStack() as stack:
        entering = opened(state, [label_table.SCHEMA], read_only=read_only)
        database = await run_disk(stack.enter_context, entering)
        async with plain_nursery() as nursery:
            content = await run_disk(content_of, state, database)
            store = ContentLibrary(state, content, await run_disk(IngestStore, content, nursery, era))
            if not database.is_frozen:
                await content.sweep_labels()
            try:
                yield store
            finally:
                with trio.CancelScope(shield=True):
                    await store.close()
                nursery.cancel_scope.cancel()


def content_of(state: Path, database: Database) -> ContentStore:
    """Return the blob store of a state directory. The caller holds the directory's lock and its open database. Blocks.

    Creates and repairs nothing if the database is frozen. Raises NoSpace, StorageFailed.
    """
    store = ContentStore(state, Labels(database), read_only=database.is_frozen)
    store.make_shards()
    return store
