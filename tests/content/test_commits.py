"""Group commit: concurrent commits share the disk's syncs; each keeps the durable order and gets its own error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from imgfs.content.commits import GroupCommit, Naming
from imgfs.content.store import ContentStore
from imgfs.errors import StorageFailed
from imgfs.oci.digest import Digest
from tests.content.disks import FaultyDisk, Recorder


def blob(number: int) -> tuple[Digest, bytes]:
    data = b"blob %d" % number
    return Digest.of(data), data


async def add_all(store: ContentStore, count: int) -> list[Digest]:
    failed: list[Digest] = []

    async def add(number: int) -> None:
        digest, data = blob(number)
        try:
            await store.add(digest, data)
        except StorageFailed:
            failed.append(digest)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(add, number)
    return failed


async def test_a_thousand_blobs_sync_each_directory_a_few_times(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    disk.calls.clear()
    assert await add_all(store, 1000) == []
    assert len(list(ContentStore(tmp_path))) == 1000
    assert disk.calls.count("fsync") == 1000
    assert disk.calls.count("fsync_directory") < 900


async def test_within_a_batch_bytes_come_before_names_before_directories(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    commits = GroupCommit(recorder, set())
    files = []
    for number in range(20):
        path = tmp_path / f"{number}"
        files.append((recorder.create(path), path))
    recorder.log.clear()
    async with trio.open_nursery() as nursery:
        for file, path in files:
            nursery.start_soon(commits.publish, Naming(path, tmp_path / "shelf" / path.name, file))
    kinds = [op.kind for op in recorder.log]
    first = kinds.index("fsync_directory")
    assert kinds[: first - 1] == ["fsync"] * (first - 1)
    assert kinds[first - 1] == "mkdir"
    assert kinds.count("rename") == 20
    assert kinds[-1] == "fsync_directory"
    assert kinds.count("fsync_directory") <= 3
    for file, _ in files:
        os.close(file)


async def test_a_failed_file_does_not_affect_the_rest_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    bad, _ = blob(7)
    real = disk.rename

    def rename(old: Path, new: Path) -> None:
        if new.name == bad.hex:
            raise OSError(errno.EIO, "Input/output error")
        real(old, new)

    monkeypatch.setattr(disk, "rename", rename)
    assert await add_all(store, 30) == [bad]
    assert bad not in store
    assert len(list(ContentStore(tmp_path))) == 29
    assert os.listdir(tmp_path / "ingest") == []


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename", "fsync_directory"])
async def test_a_failure_of_the_whole_batch_is_raised_to_every_caller(tmp_path: Path, call: str) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    disk.errors[call] = errno.EIO
    assert len(await add_all(store, 30)) == 30
    assert list(store) == []
    disk.errors.clear()
    assert list(ContentStore(tmp_path)) == []
    assert await add_all(store, 30) == []


async def test_a_cancelled_commit_that_has_begun_is_finished(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    digest, data = blob(1)
    with trio.CancelScope() as scope:
        async with store.writer(digest, len(data)) as writer:
            await writer.write(data)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.commit)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                scope.cancel()
    assert digest in store
    assert digest in ContentStore(tmp_path)
