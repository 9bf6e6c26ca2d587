"""The files of an archive by name: a tar, which goes by once, or a directory, which is asked.

Either way each blob ends in the store, verified, and only documents that say what an archive holds are kept in memory.
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
"""What docker before 1.10 read; it says nothing that manifest.json does not say."""


class Contents(Protocol):
    """What an archive holds. As Blobs it finds there what documents mention."""

    def named(self, name: str) -> bytes | None:
        """One of DOCUMENTS; None where the archive has none. Raises TooLarge."""
        ...

    def file(self, name: str) -> Digest:
        """Store the file of this name. Raises NotFound, Malformed for a name that leads out."""
        ...

    def ensure(self, descriptor: Descriptor) -> None:
        """See Blobs."""
        ...

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """See Blobs."""
        ...


class _Stored:
    """Blobs that are in the store when they are asked for; `bring` gets one there."""

    def __init__(self, store: ArchiveStore) -> None:
        self._store = store

    def ensure(self, descriptor: Descriptor) -> None:
        """See Blobs."""
        if self._store.size_of(descriptor.digest) is None:
            self.bring(descriptor)
        size = self._store.size_of(descriptor.digest)
        if size != descriptor.size:
            raise VerificationFailed(
                f"blob {descriptor.digest}: has {size} bytes, its descriptor says {descriptor.size}"
            )

    def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """See Blobs."""
        if descriptor.size > limit:
            raise TooLarge(f"blob {descriptor.digest}: has {descriptor.size} bytes, the limit is {limit}")
        self.ensure(descriptor)
        return self._store.read(descriptor.digest, 0, descriptor.size)

    def bring(self, descriptor: Descriptor) -> None:
        """Store a blob that is not stored. Raises NotFound."""
        raise NotFound(f"blob {descriptor.digest}: is mentioned in the archive and not in it; get a whole one")


class TarContents(_Stored):
    """A tar, whatever the order of its members: it is read to its end before anything is asked."""

    def __init__(self, stream: ByteStream, store: ArchiveStore) -> None:
        """Read the tar. What is a blob by its name is stored under it, every other file under what its bytes tell.

        Raises Malformed, Truncated, TooLarge, Unsupported, VerificationFailed, and what the store raises.
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
            raise Malformed(f"archive member {name[:200]!r}: its links go round")
        if found not in self._files:
            raise NotFound(
                f"archive member {name[:200]!r}: is mentioned in {docker.MANIFEST_FILE} and not in the archive"
            )
        return self._files[found]

    def _add(self, member: Member, payload: Payload) -> None:
        name = member.name
        if name in self._seen:
            raise Malformed(f"archive member {name[:200]!r}: is there twice, so it means two things")
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
    """A directory: only what somebody asks for is read."""

    def __init__(self, path: Path, store: ArchiveStore, read: SoFar = lambda _: None) -> None:
        """`read` is told how many bytes of files were read so far."""
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
        """A plain file of the directory; a link may lead to it, but not out. Raises NotFound, Malformed."""
        path = os.path.realpath(self._path / name)
        if os.path.commonpath([path, self._path]) != str(self._path):
            raise Malformed(f"{name}: is a link that leads out of {self._path}")
        try:
            file = open(path, "rb", buffering=0, opener=_opener)  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{name}: is not in {self._path}; get a whole layout") from None
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
                raise
            raise Malformed(f"{name}: is no plain file; get a whole layout") from None
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Malformed(f"{name}: is no plain file; get a whole layout")
            yield FilePayload(file, self._count)

    def _count(self, read: int) -> None:
        self._read += read
        self._tell(self._read)


class FilePayload:
    """The bytes of an open file, as many as it had when it was opened."""

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
    """Bytes that are in memory."""

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
    """Not blocking: a pipe that lies there must not make anybody wait."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _whole(name: str, payload: Payload) -> bytes:
    if payload.size > MANIFEST_SIZE_MAX:
        raise TooLarge(f"{name}: has {payload.size} bytes, the limit is {MANIFEST_SIZE_MAX}")
    parts: list[bytes] = []
    while piece := payload.read(PIECE):
        parts.append(piece)
    return b"".join(parts)
