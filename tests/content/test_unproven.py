"""Provisional names: the cost of a small commit, and how a start handles the names that a crash left."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.check.content import check_blob
from imgfs.content.commits import GroupCommit, Naming
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.content.unproven import AHEAD_BYTES, final_path, unproven_path
from imgfs.errors import StorageFailed
from imgfs.oci.digest import Digest
from tests.content.disks import FaultyDisk, Recorder

DATA = b"some bytes" * 100
DIGEST = Digest.of(DATA)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def content(tmp_path: Path, disk: FaultyDisk) -> ContentStore:
    store = ContentStore(tmp_path, disk=disk)
    store.make_shards()
    return store


@pytest.fixture
async def ingests(content: ContentStore, nursery: trio.Nursery) -> IngestStore:
    return IngestStore(content, nursery, era="one")


async def written(ingests: IngestStore, ref: str = "r", data: bytes = DATA, total: int | None = None) -> None:
    async with await ingests.open(ref, total=total) as writer:
        await writer.write(data)
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_small_ingest_is_synced_only_by_its_commit(ingests: IngestStore, disk: FaultyDisk) -> None:
    await written(ingests)
    assert "fsync" not in disk.calls
    disk.calls.clear()
    await ingests.commit("r", DIGEST)
    assert disk.calls == ["rename", "seal", "fsync", "fsync_directory", "rename", "unlink"]


@pytest.mark.parametrize(("data", "total"), [(bytes(AHEAD_BYTES + 1), None), (DATA, len(DATA))])
async def test_a_large_or_recorded_ingest_is_synced_in_the_background(
    ingests: IngestStore, disk: FaultyDisk, data: bytes, total: int | None
) -> None:
    await written(ingests, data=data)
    if total is not None:
        await ingests.declare("r", total=total)
        async with await ingests.open("r") as writer:
            await writer.write_at(0, data)
    with trio.fail_after(10):
        while not disk.calls.count("fsync"):
            await trio.testing.wait_all_tasks_blocked(0.001)
    await trio.testing.wait_all_tasks_blocked(0.01)
    disk.calls.clear()
    await ingests.commit("r", Digest.of(data))
    assert disk.calls == ["seal", "rename", "fsync_directory", "unlink"]


async def kinds_of_a_batch(root: Path, count: int, goes_ahead: Callable[[int], bool]) -> list[str]:
    """Return the disk operations of a batch of so many commits; each one ends with its final name."""
    recorder, shelf = Recorder(root), root / "shelf"
    shelf.mkdir()
    commits = GroupCommit(recorder, {shelf})
    for number in range(count):
        os.close(recorder.create(root / f"{number}"))
    recorder.log.clear()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            naming = Naming(root / f"{number}", shelf / f"{number}", goes_ahead=goes_ahead(number))
            nursery.start_soon(commits.publish, naming)
    assert {path.name for path in shelf.iterdir()} == {f"{number}" for number in range(count)}
    return [op.kind for op in recorder.log]


async def test_within_a_batch_bytes_and_names_share_the_syncs_and_the_final_names_come_last(tmp_path: Path) -> None:
    kinds = await kinds_of_a_batch(tmp_path, 20, lambda _: True)
    assert kinds == ["rename"] * 20 + ["fsync"] * 20 + ["fsync_directory"] + ["rename"] * 20


@pytest.mark.parametrize("goes_ahead", [True, False])
async def test_within_a_batch_all_writes_start_before_the_first_wait(
    tmp_path: Path, disk: FaultyDisk, goes_ahead: bool
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    commits = GroupCommit(disk, {shelf})
    for number in range(5):
        os.close(disk.create(tmp_path / f"{number}"))
    disk.calls.clear()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            naming = Naming(tmp_path / f"{number}", shelf / f"{number}", goes_ahead=goes_ahead)
            nursery.start_soon(commits.publish, naming)
    told = [call for call in disk.calls if call != "rename"]
    each = ["seal", "begin_to_write"] if goes_ahead else ["seal"]
    assert told == each * 5 + ["fsync"] * 5 + ["fsync_directory"]


class OrdinaryUsers(FaultyDisk):
    """A disk for a user who cannot write to a read-only file."""

    def open(self, path: Path) -> int:
        if not path.stat().st_mode & 0o200:
            os.chmod(path, 0o600)
        return super().open(path)


async def test_a_sealed_file_stays_read_only(tmp_path: Path) -> None:
    disk, shelf = OrdinaryUsers(), tmp_path / "shelf"
    shelf.mkdir()
    commits = GroupCommit(disk, {shelf})
    for number in range(6):
        os.close(disk.create(tmp_path / f"{number}"))
    async with trio.open_nursery() as nursery:
        for number in range(6):
            naming = Naming(tmp_path / f"{number}", shelf / f"{number}", goes_ahead=number % 2 == 0)
            nursery.start_soon(commits.publish, naming)
    assert {(shelf / f"{number}").stat().st_mode & 0o777 for number in range(6)} == {0o400}


async def test_in_a_batch_of_both_kinds_each_keeps_its_order(tmp_path: Path) -> None:
    kinds = await kinds_of_a_batch(tmp_path, 11, lambda number: number % 2 == 0)
    assert kinds == ["fsync"] * 5 + ["rename"] * 11 + ["fsync"] * 6 + ["fsync_directory"] + ["rename"] * 6


def files(root: Path) -> list[Path]:
    """Return all files in the directories of blobs."""
    return list(root.glob("blobs/*/*/*"))


async def test_two_writers_of_one_blob_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(store.add, DIGEST, DATA)
    assert await ContentStore(tmp_path).read(DIGEST) == DATA
    assert files(tmp_path) == [store.path(DIGEST)]


async def test_a_failed_writer_does_not_disturb_another_of_the_same_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    real, numbers, told = disk.fsync, itertools.count(1), list[StorageFailed]()

    def fsync(file: int) -> None:
        real(file)
        if next(numbers) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def add() -> None:
        try:
            await store.add(DIGEST, DATA)
        except StorageFailed as error:
            told.append(error)

    monkeypatch.setattr(disk, "fsync", fsync)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(add)
    assert len(told) == 1
    assert await ContentStore(tmp_path).read(DIGEST) == DATA
    assert files(tmp_path) == [store.path(DIGEST)]


class FinalNamesFail(FaultyDisk):
    """A disk that refuses every rename to a final name."""

    is_failing = True

    def rename(self, old: Path, new: Path) -> None:
        if self.is_failing and final_path(old) == new:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().rename(old, new)


async def test_a_commit_whose_final_name_is_refused_loses_nothing(tmp_path: Path, nursery: trio.Nursery) -> None:
    disk = FinalNamesFail()
    content = ContentStore(tmp_path, disk=disk)
    ingests = IngestStore(content, nursery, era="one")
    await written(ingests)
    with pytest.raises(StorageFailed):
        await ingests.commit("r", DIGEST)
    assert files(tmp_path) == []
    assert ingests.status("r").offset == len(DATA)
    assert DIGEST not in content
    disk.is_failing = False
    await ingests.commit("r", DIGEST)
    assert await content.read(DIGEST) == DATA


def left(content: ContentStore, data: bytes) -> Path:
    """Create the file that a power cut or a kill during a commit leaves."""
    path = unproven_path(content.path(DIGEST))
    path.write_bytes(data)
    return path


async def test_a_start_gives_complete_blobs_their_final_name(tmp_path: Path, content: ContentStore) -> None:
    path = left(content, DATA)
    opened = ContentStore(tmp_path)
    assert await opened.read(DIGEST) == DATA
    assert opened.path(DIGEST).stat().st_mode & 0o777 == 0o400
    assert not path.exists()
    assert DIGEST in ContentStore(tmp_path)


@pytest.mark.parametrize("data", [b"", DATA[:-1], bytes(len(DATA)), DATA + b"more"])
def test_a_start_removes_torn_bytes(tmp_path: Path, content: ContentStore, data: bytes) -> None:
    left(content, data)
    assert list(ContentStore(tmp_path)) == []
    assert files(tmp_path) == []


async def test_a_start_keeps_a_stored_blob_and_drops_its_provisional_copy(
    tmp_path: Path, content: ContentStore
) -> None:
    await content.add(DIGEST, DATA)
    left(content, b"torn")
    assert await ContentStore(tmp_path).read(DIGEST) == DATA
    assert files(tmp_path) == [content.path(DIGEST)]


@pytest.mark.parametrize("call", ["fsync", "rename"])
async def test_a_file_that_a_start_cannot_handle_stays_for_the_next(
    tmp_path: Path, content: ContentStore, disk: FaultyDisk, call: str
) -> None:
    path = left(content, DATA)
    disk.errors[call] = errno.EIO
    assert list(ContentStore(tmp_path, disk=disk)) == []
    assert path.read_bytes() == DATA
    assert DIGEST in ContentStore(tmp_path)


def test_a_read_only_start_leaves_provisional_names(tmp_path: Path, content: ContentStore) -> None:
    path = left(content, DATA)
    assert list(ContentStore(tmp_path, read_only=True)) == []
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_objects_that_are_not_files_are_left_alone(
    tmp_path: Path, content: ContentStore, make: Callable[[Path], None]
) -> None:
    path = unproven_path(content.path(DIGEST))
    make(path)
    assert list(ContentStore(tmp_path)) == []
    assert path.exists()


def test_check_does_not_report_provisional_names(content: ContentStore) -> None:
    path = left(content, b"torn")
    assert check_blob(path, "place", None, deep=True, moved=lambda _: None) is None
    stranger = path.with_name("else.unproven")
    assert check_blob(stranger, "place", None, deep=True, moved=lambda _: None) is not None
