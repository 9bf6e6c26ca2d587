"""The blob store: `blobs/<algorithm>/<xx>/<hex>`, one read-only file a digest, and the writer that fills it.

Owns which digests are stored, their bytes and their removal. What a digest means, where it can be had and who refers
to it are left to images/ and transfer/. What is stored is known in memory from the start's directory walk, so listing
and looking up never wait for the disk.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imgfs.aio.threads import run_cpu, run_disk
from imgfs.content.durable import fsync_path, make_directory, publish, sweep, temporary_name
from imgfs.errors import NotFound, TooLarge, VerificationFailed, from_os
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest

_log = logging.getLogger("imgfs.content")


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob: size in bytes, when it was committed (ns since the epoch), and bytes on disk."""

    digest: Digest
    size: int
    committed: int
    allocated: int


class ContentStore:
    """All stored blobs of one state directory."""

    def __init__(self, root: Path) -> None:
        """Open the store below `root`, create it if needed, and sweep what a crash left behind."""
        self._root = root
        self._ingest = root / "ingest"
        self._stored: dict[Digest, BlobInfo] = {}
        for algorithm in HEX_LENGTH:
            make_directory(root / "blobs" / algorithm)
        make_directory(self._ingest)
        sweep(self._ingest)
        for path in self._scan():
            self._register(path)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._stored

    def __iter__(self) -> Iterator[BlobInfo]:
        return iter(list(self._stored.values()))

    def info(self, digest: Digest) -> BlobInfo | None:
        """What is known of a stored blob; None if it is not stored."""
        return self._stored.get(digest)

    def open(self, digest: Digest) -> int:
        """A file descriptor for reading; it outlives `delete`. The caller closes it. Raises NotFound, StorageFailed."""
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._stored.pop(digest, None)
            raise NotFound(f"content {digest}: is not stored here") from None
        except OSError as error:
            raise from_os(error, f"content {digest}") from None

    def path(self, digest: Digest) -> Path:
        """Where the blob lies when it is stored."""
        return self._root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    async def read(self, digest: Digest) -> bytes:
        """The whole of a small stored blob, verified again. Raises NotFound or StorageFailed.

        One that is damaged is set aside and counts as not stored: what can be fetched again is, on the next read.
        """
        try:
            data = await run_disk(self.path(digest).read_bytes)
            if Digest.of(data, digest.algorithm) != digest:
                await run_disk(self.set_aside, digest)
                raise NotFound(f"content {digest}: was damaged on disk and is set aside; read again")
            return data
        except FileNotFoundError:
            self._stored.pop(digest, None)
            raise NotFound(f"content {digest}: is not stored here") from None
        except OSError as error:
            raise from_os(error, f"content {digest}") from None

    async def add(self, digest: Digest, data: bytes) -> None:
        """Store `data`; on return it is durable. Raises VerificationFailed, NoSpace or StorageFailed."""
        if digest in self._stored:
            return
        async with self.writer(digest, len(data)) as writer:
            await writer.write(data)
            await writer.commit()

    def writer(self, digest: Digest, total: int) -> BlobWriter:
        """Begin to write the blob `digest` of `total` bytes. Two writers of one digest do not disturb each other."""
        return BlobWriter(self, digest, total, self._ingest / temporary_name())

    async def delete(self, digest: Digest) -> None:
        """Remove a blob here and now; open descriptors keep reading. Raises NotFound or StorageFailed."""
        if self._stored.pop(digest, None) is None:
            raise NotFound(f"content {digest}: is not stored here")
        try:
            await run_disk(self._unlink, self.path(digest))
        except OSError as error:
            raise from_os(error, f"content {digest}") from None

    def forget(self, digest: Digest) -> None:
        """Somebody removed the blob's file from under the store."""
        self._stored.pop(digest, None)

    def set_aside(self, digest: Digest) -> None:
        """Keep a damaged blob's bytes under another name, so that it is no longer served."""
        self._stored.pop(digest, None)
        path = self.path(digest)
        path.rename(path.with_name(f"{path.name}.damaged"))
        _log.warning("damaged blob set aside", extra={"digest": digest})

    async def adopt(self, digest: Digest, verified: Path) -> None:
        """Store a file that somebody has verified and synced already, by hard link: no byte is copied."""
        if digest not in self._stored:
            await run_disk(self._link, digest, verified)

    def _link(self, digest: Digest, verified: Path) -> None:
        final = self.path(digest)
        try:
            make_directory(final.parent)
            with suppress(FileExistsError):
                os.link(verified, final)
            fsync_path(final.parent)
            self._register(final)
        except OSError as error:
            raise from_os(error, f"content {digest}") from None

    def publish(self, digest: Digest, temporary: Path) -> None:
        """Give a verified, synced file its name; for the writer, in a thread."""
        final = self.path(digest)
        make_directory(final.parent)
        publish(temporary, final)
        self._register(final)

    def _scan(self) -> Iterator[Path]:
        for algorithm, length in HEX_LENGTH.items():
            top = self._root / "blobs" / algorithm
            for shelf in (entry for entry in os.scandir(top) if entry.is_dir()):
                for entry in os.scandir(shelf.path):
                    named = len(entry.name) == length and is_digest(f"{algorithm}:{entry.name}")
                    if named and shelf.name == entry.name[:2] and entry.is_file():
                        yield Path(entry.path)

    def _register(self, path: Path) -> None:
        status = path.stat()
        digest = Digest(f"{path.parent.parent.name}:{path.name}")
        self._stored[digest] = BlobInfo(digest, status.st_size, status.st_mtime_ns, status.st_blocks * 512)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        fsync_path(path.parent)


class BlobWriter:
    """One blob on its way in: bytes are hashed as they come, and nothing is stored that does not verify.

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
            self._file = await run_disk(
                os.open, self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400
            )
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._temporary.unlink(missing_ok=True)

    async def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises TooLarge past the total, NoSpace or StorageFailed."""
        if self.offset + len(piece) > self._total:
            raise TooLarge(f"content {self._digest}: more than the {self._total} bytes it was declared with")
        await run_cpu(self._append, piece)

    async def commit(self) -> None:
        """Verify and store; on return the blob survives a power cut.

        Raises VerificationFailed, NoSpace or StorageFailed.
        """
        if self.offset != self._total:
            raise VerificationFailed(f"content {self._digest}: got {self.offset} bytes, expected {self._total}")
        if self._hash.hexdigest() != self._digest.hex:
            got = Digest.from_hash(self._hash)
            raise VerificationFailed(f"content {self._digest}: the bytes have digest {got}; they are not kept")
        try:
            await run_disk(self._finish)
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None

    def _append(self, piece: bytes | memoryview) -> None:
        assert self._file is not None
        self._hash.update(piece)
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise from_os(error, f"content {self._digest}") from None
        self.offset += len(piece)

    def _finish(self) -> None:
        assert self._file is not None
        os.fsync(self._file)
        self._store.publish(self._digest, self._temporary)
        os.close(self._file)
        self._file = None
