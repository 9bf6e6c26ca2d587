"""The blob store: `blobs/<algorithm>/<xx>/<hex>`, one read-only file for each digest.

This module owns which digests are stored, their bytes, labels and removal, and the writer of a single blob of known
digest. It does not know what a digest means, where it can be fetched, or what refers to it (images/, transfer/), and
leaves resumable writes to ingests/. The start walks the directories and keeps all digests in memory, so listing and
lookup never wait for the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.content.commits import SIDE_BY_SIDE, GroupCommit, Naming
from imgfs.content.labels import Labels
from imgfs.content.unproven import AHEAD_BYTES, final_path, prove
from imgfs.disk.calls import HOST, Disk, write_all
from imgfs.disk.durable import aside_name, make_directory, sweep, temporary_name
from imgfs.errors import NotFound, NotPermitted, TooLarge, VerificationFailed, from_os, opened_read_only
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest
from imgfs.state import is_read_only

_log = logging.getLogger("imgfs.content")

_OLD_NAME_SECONDS = 60
"""A directory that has not changed for this long is durable, even if the process that changed it was killed."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob: size in bytes, commit time (ns since the epoch), and allocated bytes on disk."""

    digest: Digest
    size: int
    committed: int
    allocated: int


class ContentStore:
    """All stored blobs of one state directory.

    With `read_only`, or on a read-only state directory, every change raises ReadOnly.
    """

    def __init__(self, root: Path, labels: Labels | None = None, disk: Disk = HOST, *, read_only: bool = False) -> None:
        """Open the store below `root`, create it if needed, and sweep what a crash left behind."""
        self.root = root
        self.disk = disk
        self._labels = labels
        self._stored: dict[Digest, BlobInfo] = {}
        self._relied: dict[Digest, BlobInfo] = {}
        self._shards: set[Path] = set()
        self._commits = GroupCommit(disk, self._shards)
        self.is_read_only = read_only or not self._prepare()
        for path, status in self._scan():
            self._note(path, status)
        if not self.is_read_only:
            self._sync_old_names()

    def _prepare(self) -> bool:
        """Create the directories and sweep temporary files; return False if the state directory cannot be changed."""
        try:
            for algorithm in HEX_LENGTH:
                make_directory(self.root / "blobs" / algorithm, self.disk)
            make_directory(self.ingest, self.disk)
            sweep(self.ingest)
            for algorithm in HEX_LENGTH:
                self.disk.fsync_directory(self.root / "blobs" / algorithm)
            return not is_read_only(self.root)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return False

    def make_shards(self) -> None:
        """Create the shard directories of sha256 in advance, so that no commit has to make a directory durable. Blocks.

        A disk error is ignored: the commit that needs a missing directory tries again.
        """
        top = self.root / "blobs" / "sha256"
        missing = {top / f"{number:02x}" for number in range(256)} - self._shards
        if self.is_read_only or not missing:
            return
        with suppress(OSError):
            for shard in sorted(missing):
                with suppress(FileExistsError):
                    self.disk.mkdir(shard)
            self.disk.fsync_directory(top)
            self._shards |= missing

    @property
    def ingest(self) -> Path:
        """The directory of unfinished writes."""
        return self.root / "ingest"

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._stored

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[BlobInfo]:
        return iter(list(self._stored.values()))

    def info(self, digest: Digest) -> BlobInfo | None:
        """Return what is known of a stored blob; None if it is not stored."""
        return self._stored.get(digest)

    def rely(self, digest: Digest) -> None:
        """Record that a caller was told that the blob is stored, and therefore sends no bytes of it."""
        self._relied[digest] = self._stored[digest]

    def is_relied_on(self, digest: Digest) -> bool:
        """Return whether `rely` was called for this blob since the store was opened."""
        info = self._stored.get(digest)
        return info is not None and self._relied.get(digest) is info

    def open(self, digest: Digest) -> int:
        """Return a file descriptor for reading, which stays valid after `delete`. The caller closes it.

        Raises NotFound, StorageFailed.
        """
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._stored.pop(digest, None)
            raise NotFound(f"content {digest}: is not stored here") from None
        except OSError as error:
            raise from_os(error, f"content {digest}") from None

    def path(self, digest: Digest) -> Path:
        """Return the path of the blob's file, whether or not it is stored."""
        return self.root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    async def read(self, digest: Digest) -> bytes:
        """Return all bytes of a small stored blob, and verify them again. Raises NotFound or StorageFailed.

        A damaged blob is set aside and counts as not stored, so the next read fetches it again if it can.
        """
        try:
            data = await run_disk(self.path(digest).read_bytes)
            if Digest.of(data, digest.algorithm) != digest:
                await run_disk(self.set_aside, digest)
                raise NotFound(f"content {digest}: was damaged on disk and is set aside; read it again")
            return data
        except FileNotFoundError:
            self._stored.pop(digest, None)
            raise NotFound(f"content {digest}: is not stored here") from None
        except OSError as error:
            raise from_os(error, f"content {digest}") from None

    async def add(self, digest: Digest, data: bytes) -> None:
        """Store `data`. It is durable on return. Raises VerificationFailed, NoSpace, StorageFailed or ReadOnly."""
        if digest in self._stored:
            return
        async with self.writer(digest, len(data)) as writer:
            await writer.write(data)
            await writer.commit()

    def writer(self, digest: Digest, total: int) -> BlobWriter:
        """Return a writer of the blob `digest` of `total` bytes. Two writers of one digest do not disturb each other.

        Raises ReadOnly.
        """
        if self.is_read_only:
            raise opened_read_only(f"content {digest}")
        return BlobWriter(self, digest, total, self.ingest / temporary_name())

    async def delete(self, digest: Digest) -> None:
        """Remove a blob and its labels durably, also on a full disk; open descriptors keep reading.

        Once begun it is not cancelled. Raises NotFound, NoSpace, StorageFailed or ReadOnly.
        """
        if digest not in self._stored:
            raise NotFound(f"content {digest}: is not stored here")
        with trio.CancelScope(shield=True):
            await self.check_writable(f"content {digest}")
            await self.remove(digest)
            try:
                for directory in (self.ingest, self.path(digest).parent):  # the rename changed both
                    await run_disk(self.disk.fsync_directory, directory)
            except OSError as error:
                raise from_os(error, f"content {digest}") from None
            if self.labels(digest) and self._labels is not None:
                await self._labels.clear(digest)

    async def remove(self, digest: Digest) -> None:
        """Remove a blob; its labels stay, and a power cut may bring it back. Open descriptors keep reading.

        Before the first await the blob is no longer stored and has lost its name, so a removal never hits a blob that
        is stored later. A kill leaves a temporary name, which the next start sweeps. Once begun it is not cancelled.
        Raises NotFound; NoSpace, StorageFailed or ReadOnly, after which the blob is stored as before.
        """
        info = self._stored.get(digest)
        if info is None:
            raise NotFound(f"content {digest}: is not stored here")
        path, removed = self.path(digest), None
        try:
            removed = self._take_name(path)
            self._stored.pop(digest)
            if removed is not None:
                with trio.CancelScope(shield=True):
                    await run_disk(self.disk.unlink, removed)
        except OSError as error:
            if removed is not None and not path.exists():
                with suppress(OSError):
                    self.disk.rename(removed, path)
                    self._stored[digest] = info
            raise from_os(error, f"content {digest}") from None

    def _take_name(self, path: Path) -> Path | None:
        """Give a blob's file a temporary name and return it; None if the file has no name any more.

        A rename takes microseconds, so the event loop makes it. Unlinking a large file takes long.
        """
        temporary = self.ingest / temporary_name()
        try:
            self.disk.rename(path, temporary)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.disk.unlink(path)  # the directory of temporary names cannot grow on a full disk
            return None
        return temporary

    async def check_writable(self, subject: str) -> None:
        """Raise ReadOnly if nothing in the state directory can be changed.

        Call it before work that must not fail half-way.
        """
        if self.is_read_only:
            raise opened_read_only(subject)
        if await run_disk(is_read_only, self.root):
            raise from_os(OSError(errno.EROFS, os.strerror(errno.EROFS)), subject)

    def labels(self, digest: Digest) -> dict[str, bytes]:
        """Return the labels of a blob, sorted by key."""
        return self._labels.of(digest) if self._labels is not None else {}

    async def set_label(self, digest: Digest, key: str, value: bytes) -> None:
        """Set one label of a stored blob durably. Raises Invalid, NotFound, NoSpace, StorageFailed."""
        await self.update_labels(digest, {key: value})

    async def update_labels(self, digest: Digest, changes: Mapping[str, bytes | None]) -> None:
        """Set labels of a stored blob, and remove those whose value is None, in one transaction.

        Raises as `set_label`.
        """
        if digest not in self._stored:
            raise NotFound(f"content {digest}: is not stored here")
        labels = self._labelled(digest)
        await labels.update(digest, changes, lambda _: digest in self._stored)
        if digest not in self._stored:  # a concurrent removal saw no labels yet and left these
            await labels.clear(digest)

    async def remove_label(self, digest: Digest, key: str) -> None:
        """Remove one label durably. Raises NotFound, NoSpace, StorageFailed."""
        await self._labelled(digest).remove(digest, key)

    async def sweep_labels(self) -> None:
        """Remove the labels of blobs that are not stored: a crash during a removal leaves them."""
        if self._labels is not None:
            await self._labels.sweep(self._stored)

    def _labelled(self, digest: Digest) -> Labels:
        if self._labels is None:
            raise NotPermitted(f"content {digest}: this store keeps no labels")
        return self._labels

    def forget(self, digest: Digest) -> None:
        """Drop a blob whose file was removed by another program."""
        self._stored.pop(digest, None)

    def set_aside(self, digest: Digest) -> None:
        """Rename the file of a damaged blob, so that its bytes are kept but no longer served."""
        self._stored.pop(digest, None)
        path = self.path(digest)
        with suppress(OSError):
            self.disk.rename(path, aside_name(path))
        _log.warning("damaged blob set aside", extra={"digest": digest})

    async def adopt(self, digest: Digest, verified: Path) -> None:
        """Store a file that the caller has verified and synced, by hard link: no byte is copied."""
        if digest not in self._stored:
            try:
                await self.publish(digest, Naming(verified, self.path(digest), keep=True))
            except OSError as error:
                raise from_os(error, f"content {digest}") from None

    async def share(self, digest: Digest, verified: Path) -> None:
        """Replace a stored blob by a hard link to `verified`, a file with the same bytes, so that they are on disk
        once.

        If the disk refuses, the blob stays as it is.
        """
        temporary = self.ingest / temporary_name()
        try:
            # On the event loop: in a thread, a concurrent removal of the blob could be undone.
            if digest in self._stored and self._link_over(self.path(digest), verified, temporary):
                await run_disk(self.disk.fsync_directory, self.path(digest).parent)
        except OSError as error:
            _log.warning("blob is stored twice", extra={"digest": digest, "reason": error.strerror})
            with suppress(OSError):
                self.disk.unlink(temporary)

    def _link_over(self, final: Path, verified: Path, temporary: Path) -> bool:
        if final.samefile(verified):
            return False
        self.disk.link(verified, temporary)
        self.disk.rename(temporary, final)
        self._note(final, final.stat())
        return True

    async def publish(self, digest: Digest, naming: Naming) -> None:
        """Give verified bytes the name of their digest durably. Concurrent calls share syncs. Raises OSError.

        The caller guarantees the digest: nothing is hashed here. Cancellation has no effect once the call has begun.
        """
        await self._commits.publish(naming)
        self._note(naming.final, naming.final.stat())

    def _scan(self) -> Iterator[tuple[Path, os.stat_result]]:
        for algorithm, length in HEX_LENGTH.items():
            top = self.root / "blobs" / algorithm
            if not top.is_dir():
                continue
            for shard in (entry for entry in os.scandir(top) if entry.is_dir()):
                self._shards.add(Path(shard.path))
                for entry in list(os.scandir(shard.path)):
                    named = len(entry.name) == length and is_digest(f"{algorithm}:{entry.name}")
                    if named and shard.name == entry.name[:2] and entry.is_file():
                        yield Path(entry.path), entry.stat()
                    elif not named and entry.is_file(follow_symlinks=False) and (path := self._prove(Path(entry.path))):
                        yield path, path.stat()

    def _prove(self, path: Path) -> Path | None:
        """Check a provisional name and return the final name if it is a blob; on a read-only disk, leave it for a later
        start.
        """
        final = final_path(path)
        return prove(self.disk, path, final) if final is not None and not self.is_read_only else None

    def _sync_old_names(self) -> None:
        """Make names durable that an earlier run was killed over, before they count as stored."""
        since = time.time() - _OLD_NAME_SECONDS
        shards = {self.path(digest).parent for digest in self._stored}
        fresh = [shard for shard in shards if shard.stat().st_mtime > since]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
            list(threads.map(self.disk.fsync_directory, fresh))

    def _note(self, path: Path, status: os.stat_result) -> None:
        digest = Digest(f"{path.parent.parent.name}:{path.name}")
        self._stored[digest] = BlobInfo(digest, status.st_size, status.st_mtime_ns, status.st_blocks * 512)


class BlobWriter:
    """Writes one blob of known digest and size. Nothing of it stays unless it verifies.

    For bytes that are not worth resuming, or whose ref has another writer. Use it as an async context; leaving it
    without `commit` removes every trace. Memory use is one piece.
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
        """Verify and store; on return the blob survives a power cut.

        Cancellation has no effect once publishing has begun.

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
