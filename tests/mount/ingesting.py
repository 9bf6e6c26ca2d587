"""Helpers for unfinished writes as files: writing, declaring, committing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from imgfs.oci.digest import Digest

MALFORMED = ["x", "sha256:", "sha256:12", "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha256:" + "A" * 64]

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@contextmanager
def writing(path: Path, flags: int = os.O_WRONLY | os.O_CREAT) -> Generator[int]:
    """Open a writer."""
    file = os.open(path, flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def put(path: Path, data: bytes) -> Path:
    """Create an ingest of these bytes without a writer."""
    with writing(path) as file:
        assert os.write(file, data) == len(data)
    return path


def commit(path: Path, data: bytes) -> Path:
    """Commit as the digest of `data`; return the blob."""
    blob = path.parent.parent / Digest.of(data)
    os.rename(path, blob)
    return blob


def blob_of(path: Path, data: bytes) -> Path:
    """Store a blob through the ref `path`."""
    return commit(put(path, data), data)


def xattrs(path: Path) -> dict[str, str]:
    return {name.removeprefix("user.imgfs."): os.getxattr(path, name).decode() for name in os.listxattr(path)}


def declare(path: Path | int, **facts: object) -> None:
    for name, value in facts.items():
        os.setxattr(path, f"user.imgfs.{name}", str(value).encode())


def size(path: Path | int) -> int:
    return os.stat(path).st_size


def together(count: int, work: Callable[[int], int]) -> list[int]:
    """Call a function in several threads at once; return the results."""
    results: list[int] = []
    gate = threading.Barrier(count)

    def go(number: int) -> None:
        gate.wait()
        results.append(work(number))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
