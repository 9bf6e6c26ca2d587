"""Two access paths to the content store behind one protocol: calls of the library, and files of a mount."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from imgfs.content import ContentLibrary, open_store
from imgfs.content.ingests.refs import ref_name
from imgfs.content.ingests.store import IngestWriter
from tests.contract.portal import Portal
from tests.mount.scene import until
from tests.support.mounted import Mounted

T = TypeVar("T")

_LABEL = "user.label."


@dataclass(frozen=True)
class Standing:
    """An unfinished write: sizes in bytes, time of the last change in ns since the epoch."""

    offset: int
    total: int | None
    expected: str | None
    digest: str
    updated: int


class Writing(Protocol):
    """An open writer; leaving it closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def write(self, data: bytes) -> None: ...
    def write_at(self, offset: int, data: bytes) -> None: ...
    def truncate(self, size: int) -> None: ...
    def sync(self) -> None: ...
    @property
    def offset(self) -> int: ...


class ContentDoor(Protocol):
    """The operations of both. Failures are OSError or ImgfsError with the same errno."""

    def writer(self, ref: str, total: int | None = None, expected: str | None = None) -> Writing: ...
    def status(self, ref: str) -> Standing: ...
    def refs(self) -> set[str]: ...
    def commit(self, ref: str, digest: str) -> None: ...
    def abort(self, ref: str) -> None: ...
    def size(self, digest: str) -> int: ...
    def labels(self, digest: str) -> dict[str, bytes]: ...
    def update(self, digest: str, labels: Mapping[str, bytes | None]) -> None: ...
    def read_at(self, digest: str, offset: int, size: int) -> bytes: ...
    def open(self, digest: str) -> int: ...
    def delete(self, digest: str) -> None: ...
    def stored(self) -> set[str]: ...
    def restart(self) -> None: ...


class LibraryWriting:
    """A writer of the library."""

    def __init__(self, portal: Portal[ContentLibrary], opening: AbstractAsyncContextManager[IngestWriter]) -> None:
        self._portal = portal
        self._opening = opening
        self._writer = portal.call(opening.__aenter__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._portal.call(self._opening.__aexit__, None, None, None)

    def write(self, data: bytes) -> None:
        self._portal.call(self._writer.write, data)

    def write_at(self, offset: int, data: bytes) -> None:
        self._portal.call(self._writer.write_at, offset, data)

    def truncate(self, size: int) -> None:
        self._portal.call(self._writer.truncate, size)

    def sync(self) -> None:
        self._portal.call(self._writer.fsync)

    @property
    def offset(self) -> int:
        return self._writer.offset


class LibraryDoor:
    """`open_store` on a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open()

    def _open(self) -> None:
        self._portal = Portal(open_store(self._directory / "state"))
        self._portal.__enter__()

    def close(self) -> None:
        self._portal.__exit__()

    def restart(self) -> None:
        self.close()
        self._open()

    @property
    def _store(self) -> ContentLibrary:
        return self._portal.value

    def writer(self, ref: str, total: int | None = None, expected: str | None = None) -> Writing:
        return LibraryWriting(self._portal, self._store.writer(ref, total=total, expected=expected))

    def status(self, ref: str) -> Standing:
        def hashed() -> Standing | None:
            found = self._portal.call_now(self._store.status, ref)
            told = Standing(found.offset, found.total, found.expected, found.digest, found.updated)
            return told if found.hashed == found.offset else None

        return _told(until(hashed))

    def refs(self) -> set[str]:
        return {status.ref for status in self._portal.call_now(self._store.list)}

    def commit(self, ref: str, digest: str) -> None:
        self._portal.call(self._store.commit, ref, digest)

    def abort(self, ref: str) -> None:
        self._portal.call(self._store.abort, ref)

    def size(self, digest: str) -> int:
        return self._portal.call_now(self._store.info, digest).size

    def labels(self, digest: str) -> dict[str, bytes]:
        return dict(self._portal.call_now(self._store.info, digest).labels)

    def update(self, digest: str, labels: Mapping[str, bytes | None]) -> None:
        self._portal.call(self._store.update, digest, labels)

    def read_at(self, digest: str, offset: int, size: int) -> bytes:
        return self._portal.call(self._store.read_at, digest, offset, size)

    def open(self, digest: str) -> int:
        return self._portal.call_now(self._store.open, digest)

    def delete(self, digest: str) -> None:
        self._portal.call(self._store.delete, digest)

    def stored(self) -> set[str]:
        return {str(info.digest) for info in self._portal.call_now(lambda: list(self._store.walk()))}


class FilesWriting:
    """A file below content/ingest/ that is open for writing."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def write(self, data: bytes) -> None:
        self.write_at(self.offset, data)

    def write_at(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self._file, data, offset) == len(data)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)

    def sync(self) -> None:
        os.fsync(self._file)

    def declare(self, name: str, value: str) -> None:
        os.setxattr(self._file, f"user.imgfs.{name}", value.encode())

    @property
    def offset(self) -> int:
        return os.fstat(self._file).st_size


class FilesDoor:
    """A mount on a directory."""

    def __init__(self, directory: Path) -> None:
        self._mount = Mounted(directory)
        self._mount.start()

    def close(self) -> None:
        self._mount.__exit__()

    def restart(self) -> None:
        self._mount.stop()
        self._mount.start()

    def _ingest(self, ref: str) -> Path:
        return self._mount.content / "ingest" / ref_name(ref)

    def _blob(self, digest: str) -> Path:
        return self._mount.content / digest

    def writer(self, ref: str, total: int | None = None, expected: str | None = None) -> Writing:
        writing = FilesWriting(self._ingest(ref))
        try:
            for name, value in (("total", total), ("expected", expected)):
                if value is not None:
                    writing.declare(name, str(value))
        except BaseException:
            writing.close()
            raise
        return writing

    def status(self, ref: str) -> Standing:
        path = self._ingest(ref)
        found = path.stat()
        digest = _told(_facts(path)["digest"])  # waits until a resumed prefix is hashed
        facts = _facts(path)
        total = facts.get("total")
        return Standing(
            found.st_size, None if total is None else int(total), facts.get("expected"), digest, found.st_mtime_ns
        )

    def refs(self) -> set[str]:
        return {name.replace("%2F", "/") for name in os.listdir(self._mount.content / "ingest")}

    def commit(self, ref: str, digest: str) -> None:
        os.rename(self._ingest(ref), self._blob(digest))

    def abort(self, ref: str) -> None:
        self._ingest(ref).unlink()

    def size(self, digest: str) -> int:
        return self._blob(digest).stat().st_size

    def labels(self, digest: str) -> dict[str, bytes]:
        path = self._blob(digest)
        names = [name for name in os.listxattr(path) if name.startswith(_LABEL)]
        return {name.removeprefix(_LABEL): os.getxattr(path, name) for name in names}

    def update(self, digest: str, labels: Mapping[str, bytes | None]) -> None:
        for key, value in labels.items():
            if value is not None:
                os.setxattr(self._blob(digest), _LABEL + key, value)
            elif key in self.labels(digest):
                os.removexattr(self._blob(digest), _LABEL + key)

    def read_at(self, digest: str, offset: int, size: int) -> bytes:
        file = self.open(digest)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def open(self, digest: str) -> int:
        return os.open(self._blob(digest), os.O_RDONLY)

    def delete(self, digest: str) -> None:
        self._blob(digest).unlink()

    def stored(self) -> set[str]:
        return set(os.listdir(self._mount.content)) - {"ingest"}


DOORS: dict[str, Callable[[Path], LibraryDoor | FilesDoor]] = {"library": LibraryDoor, "files": FilesDoor}


def _facts(path: Path) -> dict[str, str]:
    names = [name for name in os.listxattr(path) if name.startswith("user.imgfs.")]
    return {name.removeprefix("user.imgfs."): os.getxattr(path, name).decode() for name in names}


def _told(value: T | None) -> T:
    assert value is not None
    return value
