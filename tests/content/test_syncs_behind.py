"""What a writer wrote is synced behind it, so that a commit has the name alone to make durable; and no less.

What is small is left to the commit (test_unproven.py): here nothing counts as that.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.content.ingests.store import IngestStore, IngestWriter
from imgfs.content.store import ContentStore
from imgfs.errors import StorageFailed
from imgfs.oci.digest import Digest
from tests.content.disks import FaultyDisk, Recorder

DATA, OTHER = b"some bytes", b"else bytes"


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgfs.content.ingests.ingest.AHEAD_BYTES", 0)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
async def ingests(tmp_path: Path, disk: FaultyDisk, nursery: trio.Nursery) -> IngestStore:
    content = ContentStore(tmp_path, disk=disk)
    content.make_shards()
    return IngestStore(content, nursery, era="one")


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not is_so():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def written(ingests: IngestStore, data: bytes = DATA) -> None:
    async with await ingests.open("r") as writer:
        await writer.truncate(0)
        await writer.write(data)


async def test_a_commit_finds_the_bytes_on_disk(ingests: IngestStore, disk: FaultyDisk) -> None:
    await written(ingests)
    await until(lambda: "fsync" in disk.calls)
    await trio.testing.wait_all_tasks_blocked(0.01)
    disk.calls.clear()
    await ingests.commit("r", Digest.of(DATA))
    assert disk.calls == ["seal", "rename", "fsync_directory", "unlink"]


async def test_the_commit_raises_a_failed_background_sync(ingests: IngestStore, disk: FaultyDisk) -> None:
    disk.errors["fsync"] = errno.EIO
    await written(ingests)
    await until(lambda: ingests.status("r").offset == 0)
    disk.errors.clear()
    with pytest.raises(StorageFailed, match="bytes 0 to 10 are lost, continue at byte 0"):
        await ingests.commit("r", Digest.of(DATA))
    await written(ingests)
    await ingests.commit("r", Digest.of(DATA))


async def test_bytes_that_replace_synced_ones_are_synced_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    disk = Recorder(tmp_path)
    ingests = IngestStore(ContentStore(tmp_path, disk=disk), nursery, era="one")
    await written(ingests)
    await until(lambda: any(op.kind == "fsync" for op in disk.log))
    await written(ingests, OTHER)
    await ingests.commit("r", Digest.of(OTHER))
    kinds = [op.kind for op in disk.log]
    last = max(at for at, op in enumerate(disk.log) if op.kind == "write" and op.data == OTHER)
    assert "fsync" in kinds[last : kinds.index("rename", last)]


async def test_shards_are_created_once_or_by_commits_if_the_disk_refuses(
    tmp_path: Path, disk: FaultyDisk, ingests: IngestStore
) -> None:
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 256
    disk.calls.clear()
    ContentStore(tmp_path, disk=disk).make_shards()
    assert "mkdir" not in disk.calls
    digest = Digest.of(DATA)
    (tmp_path / "blobs/sha256" / digest.hex[:2]).rmdir()
    disk.errors["mkdir"] = errno.ENOSPC
    again = ContentStore(tmp_path, disk=disk)
    again.make_shards()
    disk.errors.clear()
    await again.add(digest, DATA)
    assert digest in ContentStore(tmp_path)


class Dying(FaultyDisk):
    """A disk whose first sync of bytes waits for `let_go` and then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def fsync(self, file: int) -> None:
        self._called("fsync")
        if self.calls.count("fsync") == 1:
            self.let_go.wait(10)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(file)


async def test_a_failed_sync_may_be_about_bytes_that_replaced_others(tmp_path: Path, nursery: trio.Nursery) -> None:
    disk = Dying()
    ingests = IngestStore(ContentStore(tmp_path, disk=disk), nursery, era="one")
    await written(ingests)
    await until(lambda: "fsync" in disk.calls)
    async with await ingests.open("r") as writer:
        await writer.truncate(0)
        await writer.write(OTHER)
        disk.let_go.set()
        await until(lambda: writer.offset == 0)
        with pytest.raises(StorageFailed, match="bytes 0 to 10 are lost, continue at byte 0"):
            await writer.fsync()
    with pytest.raises(StorageFailed, match="continue at byte 0"):
        await ingests.commit("r", Digest.of(OTHER))


class Slow(FaultyDisk):
    """A disk whose second sync of bytes fails, and whose renames wait for `let_go`."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.is_failing = False

    def rename(self, old: Path, new: Path) -> None:
        self._called("rename")
        self.let_go.wait(10)
        super().rename(old, new)

    def fsync(self, file: int) -> None:
        self._called("fsync")
        if self.is_failing and os.readlink(f"/proc/self/fd/{file}").endswith("/data"):
            self.calls.append("failed")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(file)


async def test_a_failed_sync_waits_for_a_record_in_progress(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.content.ingests.ingest.RECORD_SECONDS", 0.001)
    disk = Slow()
    ingests = IngestStore(ContentStore(tmp_path, disk=disk), nursery, era="one")
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
        await until(lambda: "rename" in disk.calls)
        disk.is_failing = True
        await writer.write(OTHER)
    await until(lambda: "failed" in disk.calls)
    await trio.testing.wait_all_tasks_blocked(0.01)
    disk.let_go.set()
    await until(lambda: "truncate" in disk.calls)
    assert ingests.status("r").offset == len(DATA)
    disk.is_failing = False
    async with await ingests.open("r") as writer:
        assert writer.offset == len(DATA)
        await writer.write(OTHER)
        disk.calls.clear()
        await writer.fsync()
        assert "fsync" in disk.calls
    await ingests.commit("r", Digest.of(DATA + OTHER))


async def test_a_waiter_for_the_timers_sync_gets_its_failure(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.content.ingests.ingest.RECORD_SECONDS", 0.001)
    disk = Dying()
    ingests = IngestStore(ContentStore(tmp_path, disk=disk), nursery, era="one")
    told = list[StorageFailed]()

    async def sync(writer: IngestWriter) -> None:
        try:
            await writer.fsync()
        except StorageFailed as error:
            told.append(error)

    async with await ingests.open("r") as writer:
        await writer.write(DATA)
        await until(lambda: "fsync" in disk.calls)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(sync, writer)
            await trio.testing.wait_all_tasks_blocked(0.01)
            disk.let_go.set()
    assert [one.message for one in told if "bytes 0 to 10 are lost, continue at byte 0" in one.message]


async def test_a_sync_during_a_restart_claims_no_later_bytes(tmp_path: Path, nursery: trio.Nursery) -> None:
    disk = Slow()
    disk.let_go.set()
    ingests = IngestStore(ContentStore(tmp_path, disk=disk), nursery, era="one")
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
        await writer.fsync()
        await writer.write(OTHER)
        disk.let_go.clear()
        disk.calls.clear()
        async with trio.open_nursery() as both:
            both.start_soon(writer.restart)
            await until(lambda: "rename" in disk.calls)
            both.start_soon(ingests.sync)
            await until(lambda: disk.calls.count("fsync") == 2)
            await trio.testing.wait_all_tasks_blocked(0.01)
            disk.let_go.set()
        await writer.write(OTHER + DATA)
        disk.calls.clear()
        await writer.fsync()
        assert "fsync" in disk.calls
