"""The content store as a library: what the tree has below content/, as calls, with neither FUSE nor a registry.

The words are containerd's (core/content: Provider, IngestManager, Manager). What is stored, and what a crash leaves, is
store.py's and ingests/'s; this puts them together for a program that has a state directory to itself.
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
    """A stored blob: size in bytes, when it was committed (ns since the epoch), and its labels, sorted by key."""

    digest: Digest
    size: int
    committed: int
    labels: Mapping[str, bytes]


class ContentLibrary:
    """What one state directory stores, and what is on its way in.

    Calls may come from several tasks. What a call changed is durable when it returns. Every change raises ReadOnly in a
    store that was opened for reading or lies on a read-only filesystem, and every call NotPermitted once it is closed.
    A digest is any text, and Invalid unless it is well-formed.
    """

    def __init__(self, root: Path, content: ContentStore, ingests: IngestStore) -> None:
        """`open_store` makes it."""
        self._root = root
        self._stored = content
        self._unfinished = ingests
        self._is_closed = False

    @asynccontextmanager
    async def writer(
        self, ref: str, *, total: int | None = None, expected: str | None = None
    ) -> AsyncGenerator[IngestWriter]:
        """Start or resume the one writer of `ref`, at `writer.offset`. Leaving it commits nothing and drops nothing.

        `total` (bytes) and `expected` are declared, and survive a crash as the bytes do. Raises Invalid; Busy while
        another writer lives; AlreadyExists if what is promised is stored already: no byte needs to be sent; TooLarge,
        NoSpace, StorageFailed.
        """
        promised = None if expected is None else Digest.parse(expected)
        async with await self._changing.open(ref, total=total, expected=promised) as writer:
            yield writer

    async def commit(self, ref: str, digest: str) -> ContentInfo:
        """Verify what an idle `ref` has, and store it as `digest`: then it survives a power cut, and the ref is free.

        Raises NotFound; Busy while a writer lives; VerificationFailed, and the ingest stays; AlreadyExists, and it
        goes; NoSpace, StorageFailed. Cancelled only while it still hashes.
        """
        await self._changing.commit(ref, Digest.parse(digest))
        return self.info(digest)

    async def abort(self, ref: str) -> None:
        """Drop an unfinished write; its writer, if one lives, gets Cancelled. Raises NotFound, StorageFailed."""
        await self._changing.abort(ref)

    def status(self, ref: str) -> IngestStatus:
        """How an unfinished write stands. Raises NotFound. Never waits, like all that is not async here."""
        return self._ingests.status(ref)

    def list(self) -> tuple[IngestStatus, ...]:
        """How all unfinished writes stand, by ref."""
        return tuple(sorted(self._ingests, key=lambda status: status.ref))

    def info(self, digest: str) -> ContentInfo:
        """What is known of a stored blob. Raises NotFound."""
        wanted = Digest.parse(digest)
        found = self._content.info(wanted)
        if found is None:
            raise NotFound(f"content {digest}: is not stored here")
        return ContentInfo(wanted, found.size, found.committed, self._content.labels(wanted))

    def walk(self) -> Iterator[ContentInfo]:
        """Every stored blob, by digest. What is deleted on the way is left out, what comes in may be."""
        for digest in sorted(found.digest for found in self._content):
            if digest in self._content:
                yield self.info(digest)

    async def update(self, digest: str, labels: Mapping[str, bytes | None]) -> ContentInfo:
        """Set labels, and remove those whose value is None; others stay. All of it or nothing.

        Raises NotFound, Invalid for what no label may be, NoSpace, StorageFailed.
        """
        self._check_writable()
        await self._content.update_labels(Digest.parse(digest), labels)
        return self.info(digest)

    async def read_at(self, digest: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end, none behind it.

        Raises NotFound, Invalid for what is below 0, StorageFailed.
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
        """A file descriptor of a blob, which goes on reading when it is deleted; the caller closes it.

        Raises NotFound, StorageFailed.
        """
        return self._content.open(Digest.parse(digest))

    async def delete(self, digest: str) -> None:
        """Remove a blob and its labels, whoever refers to it. Raises NotFound, StorageFailed."""
        self._check_writable()
        await self._content.delete(Digest.parse(digest))

    async def close(self) -> None:
        """Make what came in durable, and end every writer. Twice is once."""
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
    """The content store of the state directory `path`, which is made if need be, while the block runs.

    It is this process's alone meanwhile, so Busy is raised while a daemon or another program has it. What a crash left
    is mended as a daemon does it: stored blobs are whole, unfinished writes resume at what is on disk. At the end what
    came in is synced, and writers that still live get Cancelled.

    With `read_only` nothing is locked, mended or changed: one sees what there is at this moment, also while a daemon is
    at work. Raises NotFound where there is nothing then, NoSpace, StorageFailed.

    `era` changes with every boot and every mount of the disk. By default that is read from /proc, which can tell fewer
    mounts apart than a daemon can: unfinished writes that a killed daemon left resume at what was synced of them.
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
    """The stored blobs of a state directory with their labels, for whoever has it and its database open; blocks.

    Nothing is made or mended where the database is frozen. Raises NoSpace, StorageFailed.
    """
    store = ContentStore(state, Labels(database), read_only=database.is_frozen)
    store.make_shelves()
    return store
