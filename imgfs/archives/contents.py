"""The files of an archive by name. The archive is a tar, which is read once, or a directory.

Every blob ends in the store, verified. Only the documents that list the content of the archive are kept in memory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from imgfs.archives import docker, layout
from imgfs.archives.contract import ArchiveStore, Moved, Payload, SoFar
from imgfs.archives.names import LINKS_MAX, blob_name, clean, promised_digest
from imgfs.archives.stream import PIECE, ByteStream
from imgfs.archives.tar_reader import Member, read_members
from imgfs.errors import Malformed, NotFound, TooLarge, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import MANIFEST_SIZE_MAX

DOCUMENTS = (layout.LAYOUT_FILE, layout.INDEX_FILE, docker.MANIFEST_FILE)
_LEGACY = ("VERSION", "json", "repositories")
"""Files for docker before 1.10. They contain nothing that manifest.json does not contain."""


class Contents(Protocol):
    """The content of an archive. It is also an ArchiveBlobs."""

    def named(self, name: str) -> bytes | None:
        """Return one of DOCUMENTS; None if the archive does not have it. Raises TooLarge."""
        ...

    def file(self, name: str) -> Digest:
        """Store the file of this name. Raises NotFound, and Malformed for a name outside the archive."""
        ...

    def ensure(self, descriptor: Descriptor) -> None:
        """See ArchiveBlobs."""
        ...

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """See ArchiveBlobs."""
        ...


class _Stored:
    """Blobs that are in the store when they are needed. `bring` stores a missing one."""

    def __init__(self, store: ArchiveStore) -> None:
        self._store = store

    def ensure(self, descriptor: Descriptor) -> None:
        """See ArchiveBlobs."""
        if self._store.size_of(descriptor.digest) is None:
            self.bring(descriptor)
        size = self._store.size_of(descriptor.digest)
        if size != descriptor.size:
            raise VerificationFailed(
                f"blob {descriptor.digest}: has {size} bytes, its descriptor says {descriptor.size}"
            )

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """See ArchiveBlobs."""
        if descriptor.size > limit:
            raise TooLarge(f"blob {descriptor.digest}: has {descriptor.size} bytes, the limit is {limit}")
        self.ensure(descriptor)
        return self._store.read(descriptor.digest, 0, descriptor.size)

    def bring(self, descriptor: Descriptor) -> None:
        """Store a blob that is not stored. Raises NotFound."""
        raise NotFound(
            f"blob {descriptor.digest}: is listed in the archive but missing from it; get a complete archive"
        )


class TarContents(_Stored):
    """A tar with its members in any order. It is read to its end before any other call."""

    def __init__(self, stream: ByteStream, store: ArchiveStore) -> None:
        """Read the tar.

        A member with a blob's name is stored under that digest, every other file under the digest of its bytes.

        Raises Malformed, Truncated, TooLarge, Unsupported, VerificationFailed, and the errors of the store.
        """
        super().__init__(store)
        self._documents: dict[str, bytes] = {}
        self._files: dict[str, Digest] = {}
        self._links: dict[str, str] = {}
        self._seen: set[str] = set()
        for member, payload in read_members(stream):
            self._add(member, payload)

    def named(self, name: str) -> bytes | None:
        """See Contents."""
        return self._documents.get(name)

    def file(self, name: str) -> Digest:
        """See Contents. Follows the links of the archive."""
        found = clean(name)
        for _ in range(LINKS_MAX):
            if found not in self._links:
                break
            found = self._links[found]
        else:
            raise Malformed(f"archive member {name[:200]!r}: its links form a loop")
        if found not in self._files:
            raise NotFound(
                f"archive member {name[:200]!r}: is listed in {docker.MANIFEST_FILE} but missing from the archive"
            )
        return self._files[found]

    def _add(self, member: Member, payload: Payload) -> None:
        name = member.name
        if name in self._seen:
            raise Malformed(f"archive member {name[:200]!r}: appears twice, so the archive is ambiguous")
        self._seen.add(name)
        if member.target is not None:
            self._links[name] = member.target
        elif name in DOCUMENTS:
            self._documents[name] = _whole(name, payload)
        elif (digest := promised_digest(name)) is not None:
            self._store.put(digest, payload)
            self._files[name] = digest
        elif name.rpartition("/")[2] not in _LEGACY:
            self._files[name] = self._store.take(name, payload)


class DirectoryContents(_Stored):
    """A directory. Only the files that are needed are read."""

    def __init__(self, path: Path, store: ArchiveStore, read: SoFar = lambda _: None) -> None:
        """Call `read` with the number of bytes of files read so far."""
        super().__init__(store)
        self._path = Path(os.path.realpath(path))
        self._tell = read
        self._read = 0

    def named(self, name: str) -> bytes | None:
        """See Contents."""
        try:
            with self._open(name) as payload:
                return _whole(name, payload)
        except NotFound:
            return None

    def file(self, name: str) -> Digest:
        """See Contents."""
        found = clean(name)
        with self._open(found) as payload:
            if (digest := promised_digest(found)) is not None:
                self._store.put(digest, payload)
                return digest
            return self._store.take(found, payload)

    def bring(self, descriptor: Descriptor) -> None:
        """See _Stored."""
        with self._open(blob_name(descriptor.digest)) as payload:
            if payload.size != descriptor.size:
                raise VerificationFailed(
                    f"blob {descriptor.digest}: has {payload.size} bytes, its descriptor says {descriptor.size}"
                )
            self._store.put(descriptor.digest, payload)

    @contextmanager
    def _open(self, name: str) -> Generator[FilePayload]:
        """Open a regular file of the directory; links must not lead out of it. Raises NotFound, Malformed."""
        path = os.path.realpath(self._path / name)
        if os.path.commonpath([path, self._path]) != str(self._path):
            raise Malformed(f"{name}: is a link that leads out of {self._path}")
        try:
            file = open(path, "rb", buffering=0, opener=_opener)  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{name}: is not in {self._path}; get a complete layout") from None
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
                raise
            raise Malformed(f"{name}: is not a regular file; get a complete layout") from None
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Malformed(f"{name}: is not a regular file; get a complete layout")
            yield FilePayload(file, self._count)

    def _count(self, read: int) -> None:
        self._read += read
        self._tell(self._read)


class FilePayload:
    """The bytes of an open file, up to its size at the time of opening."""

    def __init__(self, file: BinaryIO, moved: Moved) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self._file = file
        self._moved = moved

    def read(self, size: int) -> bytes:
        """See Payload."""
        data = self._file.read(min(size, self.size - self._file.tell()))
        self._moved(len(data))
        return data

    def rewind(self) -> bool:
        """See Payload."""
        self._file.seek(0)
        return True


class BytesPayload:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data
        self._at = 0

    def read(self, size: int) -> bytes:
        """See Payload."""
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def rewind(self) -> bool:
        """See Payload."""
        self._at = 0
        return True


def _opener(path: str, flags: int) -> int:
    """Open without blocking: opening a pipe must not wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _whole(name: str, payload: Payload) -> bytes:
    if payload.size > MANIFEST_SIZE_MAX:
        raise TooLarge(f"{name}: has {payload.size} bytes, the limit is {MANIFEST_SIZE_MAX}")
    parts: list[bytes] = []
    while piece := payload.read(PIECE):
        parts.append(piece)
    return b"".join(parts)
