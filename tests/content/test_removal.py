"""Removing a blob: one way for users and garbage collection, and what a kill or a power cut leaves of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imgfs.content.store import ContentStore
from imgfs.errors import NotFound, StorageFailed
from imgfs.oci.digest import Digest
from tests.content.disks import Crash, FaultyDisk, Recorder, power_cuts

DATA = b"a blob that is removed" * 100
DIGEST = Digest.of(DATA)


@pytest.mark.parametrize("is_durable", [True, False])
async def test_after_a_crash_the_blob_is_whole_or_gone_and_nothing_else_is_left(
    tmp_path: Path, *, is_durable: bool
) -> None:
    root = tmp_path / "state"
    root.mkdir()
    recorder = Recorder(root)
    store = ContentStore(root, disk=recorder)
    await store.add(DIGEST, DATA)
    begin = len(recorder.log)
    await (store.delete(DIGEST) if is_durable else store.remove(DIGEST))
    ends = range(begin, len(recorder.log) + 1)
    kills = [(end, recorder.log[:end]) for end in ends]
    cuts = [(end, ops) for end in ends for ops in power_cuts(recorder.log, end)]
    assert {op.kind for op in recorder.log[begin:]} >= {"rename", "unlink"}
    for number, (end, ops) in enumerate([*kills, *cuts]):
        at = tmp_path / f"{number}"
        Crash(recorder.root, ops).lay_out(at)
        after = ContentStore(at)
        assert [await after.read(info.digest) for info in after] in ([], [DATA])
        assert os.listdir(at / "ingest") == []
        if end == len(recorder.log) and (is_durable or number < len(kills)):
            assert DIGEST not in after


class Watching(FaultyDisk):
    """Notes at each unlink whether the store at `root` has the blob."""

    def __init__(self) -> None:
        super().__init__()
        self.store: ContentStore | None = None
        self.seen: list[bool] = []

    def unlink(self, path: Path) -> None:
        if self.store is not None:
            self.seen.append(DIGEST in self.store or self.store.path(DIGEST).exists())
        super().unlink(path)


async def test_the_blob_has_lost_its_name_before_its_bytes_are_freed(tmp_path: Path) -> None:
    disk = Watching()
    store = ContentStore(tmp_path, disk=disk)
    await store.add(DIGEST, DATA)
    disk.store = store
    await store.remove(DIGEST)
    assert disk.seen == [False]
    await store.add(DIGEST, DATA)
    assert await store.read(DIGEST) == DATA


async def test_a_removal_that_the_disk_refuses_leaves_the_blob_stored(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    await store.add(DIGEST, DATA)
    for call in ("rename", "unlink"):
        for remove in (store.remove, store.delete):
            disk.errors = {call: errno.EIO}
            with pytest.raises(StorageFailed, match=f"content {DIGEST}: Input/output error"):
                await remove(DIGEST)
            assert await store.read(DIGEST) == DATA
            assert os.listdir(store.ingest) == []


async def test_on_a_disk_without_room_for_a_name_the_blob_is_unlinked(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    await store.add(DIGEST, DATA)
    disk.errors["rename"] = errno.ENOSPC
    await store.remove(DIGEST)
    assert not store.path(DIGEST).exists()
    with pytest.raises(NotFound):
        await store.remove(DIGEST)
