"""Reading from the event loop: exact bytes, cached or not, and files that are too short."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.aio.threads import read_at, read_cached, read_exactly
from imgfs.errors import StorageFailed

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (10, 0), (100, 5000), (len(CONTENT), 0), (1, len(CONTENT) - 1)])
async def test_exactly_the_bytes_asked_for(file: int, size: int, offset: int) -> None:
    expected = CONTENT[offset : offset + size]
    assert await read_at(file, size, offset, "it") == expected
    assert read_exactly(file, size, offset, "it") == expected


async def test_uncached_bytes_are_read_in_a_thread(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", refuse)
    assert read_cached(file, 10, 0) is None
    assert await read_at(file, 10, 7, "it") == CONTENT[7:17]


async def test_partly_cached_bytes_are_read_in_a_thread(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 4)
    assert await read_at(file, 10, 7, "it") == CONTENT[7:17]


async def test_reads_that_come_in_parts_are_joined(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 3), offset))
    assert read_exactly(file, 10, 7, "it") == CONTENT[7:17]


@pytest.mark.parametrize(("size", "offset"), [(1, len(CONTENT)), (2, len(CONTENT) - 1), (10, 10**9)])
async def test_a_short_file_is_a_storage_failure(file: int, size: int, offset: int) -> None:
    assert read_cached(file, size, offset) is None
    with pytest.raises(StorageFailed, match="layer x: is cut short on disk"):
        await read_at(file, size, offset, "layer x")


async def test_an_error_of_the_disk_names_the_subject(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StorageFailed, match="layer x: Is a directory"):
            await read_at(directory, 1, 0, "layer x")
    finally:
        os.close(directory)
