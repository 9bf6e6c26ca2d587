"""Layer copies: written in threads, visible as they grow, resumed, given up; a failing copy never fails the pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.content.ingests.downloads import LayerCopy, copy_ref
from imgfs.content.ingests.store import IngestStore
from imgfs.content.running_digest import RunningDigest
from imgfs.content.store import ContentStore
from imgfs.errors import AlreadyExists, Busy, Cancelled, TooLarge, VerificationFailed
from imgfs.oci.digest import Digest
from tests.content.disks import FaultyDisk

DATA = bytes(range(256)) * 40
DIGEST = Digest.of(DATA)
REF = copy_ref(DIGEST)
STEP = 1000


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def content(tmp_path: Path, disk: FaultyDisk) -> ContentStore:
    return ContentStore(tmp_path, disk=disk)


@pytest.fixture
async def ingests(content: ContentStore, nursery: trio.Nursery) -> IngestStore:
    return IngestStore(content, nursery, "era")


async def opened(ingests: IngestStore) -> LayerCopy:
    return await ingests.copy(DIGEST, len(DATA))


async def passes(copy: LayerCopy, end: int, step: int = STEP) -> None:
    """Feed the copy as a pass does, up to offset `end`."""
    running = RunningDigest.start("sha256")
    while running.position < end:
        piece = DATA[running.position : min(running.position + step, end)]
        running = running.after(piece)
        await trio.to_thread.run_sync(copy.keep, piece, running)


async def prefix(copy: LayerCopy) -> bytes:
    return b"".join([piece async for piece in copy.prefix()])


async def test_status_shows_the_growing_copy_with_the_digest_of_the_pass(ingests: IngestStore) -> None:
    copy = await opened(ingests)
    for end in (STEP, 4 * STEP):
        await passes(copy, end)
        status = ingests.status(REF)
        assert (status.offset, status.total, status.expected, status.is_live) == (end, len(DATA), DIGEST, True)
        assert (status.hashed, status.digest) == (end, Digest.of(DATA[:end]))
    await copy.close(keep=False)
    assert list(ingests) == []


@pytest.mark.parametrize("step", [STEP, 1700, len(DATA)])
async def test_a_copy_resumes_at_its_end_also_after_a_restart(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, disk: FaultyDisk, step: int
) -> None:
    copy = await opened(ingests)
    await passes(copy, 4321)
    await copy.close(keep=True)
    again = await opened(IngestStore(content, nursery, "era"))
    assert (again.start, await prefix(again)) == (4321, DATA[:4321])
    disk.calls.clear()
    await passes(again, 4000, step)
    assert "write" not in disk.calls
    await passes(again, len(DATA), step)
    assert again.is_whole
    await again.close(keep=True)
    last = await opened(IngestStore(content, nursery, "era"))
    assert await prefix(last) == DATA
    await last.close(keep=False)


async def test_the_bytes_of_a_broken_copy_can_be_committed(content: ContentStore, ingests: IngestStore) -> None:
    copy = await opened(ingests)
    await passes(copy, 3000)
    with pytest.raises(Busy):
        await ingests.commit(REF, DIGEST)
    await copy.close(keep=True)
    async with await ingests.open(REF) as writer:
        await writer.write(DATA[3000:])
    await ingests.commit(REF, DIGEST)
    assert await content.read(DIGEST) == DATA
    with pytest.raises(AlreadyExists):
        await opened(ingests)


async def test_the_prefix_of_a_copy_is_hashed_only_on_request(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    copy = await opened(ingests)
    await passes(copy, 3000)
    await copy.close(keep=True)
    again = IngestStore(content, nursery, "era")
    copy = await opened(again)
    await wait_all_tasks_blocked()
    assert again.status(REF).hashed == 0
    await copy.close(keep=True)
    async with await again.open(REF):
        await wait_all_tasks_blocked(0.01)
        assert again.status(REF).digest == Digest.of(DATA[:3000])


@pytest.mark.parametrize(("end", "keep"), [(0, True), (0, False), (STEP, False)])
async def test_a_copy_that_is_not_kept_leaves_no_trace_and_costs_no_sync(
    tmp_path: Path, ingests: IngestStore, disk: FaultyDisk, end: int, keep: bool
) -> None:
    disk.calls.clear()
    copy = await opened(ingests)
    await passes(copy, end)
    await copy.close(keep=keep)
    await copy.close(keep=keep)
    assert (list(ingests), os.listdir(tmp_path / "ingest")) == ([], [])
    assert not {"fsync", "fsync_directory"} & set(disk.calls)


async def test_only_the_timer_syncs_a_copy(
    ingests: IngestStore,
    disk: FaultyDisk,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
) -> None:
    monkeypatch.setattr("imgfs.content.ingests.ingest.RECORD_BYTES", STEP)
    copy = await opened(ingests)
    nursery.start_soon(copy.wait_removed)
    disk.calls.clear()
    await passes(copy, len(DATA))
    await wait_all_tasks_blocked(0.01)
    assert "fsync" not in disk.calls
    for _ in range(7):
        mock_clock.jump(1)
        await wait_all_tasks_blocked(0.01)
    assert ingests.status(REF).durable == len(DATA)
    await copy.close(keep=True)


async def test_after_a_power_cut_only_synced_bytes_are_trusted(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    copy = await opened(ingests)
    await passes(copy, 3000)
    await ingests.sync()
    await passes(copy, 5000)
    await copy.close(keep=True)
    again = await opened(IngestStore(content, nursery, "another era"))
    assert (again.start, await prefix(again)) == (3000, DATA[:3000])
    await again.close(keep=True)


async def test_a_full_disk_stops_the_copy_and_keeps_its_bytes(ingests: IngestStore, disk: FaultyDisk) -> None:
    copy = await opened(ingests)
    disk.room = 2500
    await passes(copy, 5000)
    disk.room = None
    await passes(copy, 6000)
    await copy.close(keep=True)
    again = await opened(ingests)
    assert (again.start, await prefix(again)) == (2500, DATA[:2500])
    await passes(again, len(DATA))
    assert (again.is_whole, ingests.status(REF).digest) == (True, DIGEST)
    await again.close(keep=False)


async def test_a_copy_is_given_up_if_that_frees_enough_space(tmp_path: Path, ingests: IngestStore) -> None:
    copy = await opened(ingests)
    assert not await trio.to_thread.run_sync(copy.give_up, 0)
    await passes(copy, 5000)
    assert not await trio.to_thread.run_sync(copy.give_up, 5001)
    assert await trio.to_thread.run_sync(copy.give_up, 5000)
    assert not await trio.to_thread.run_sync(copy.give_up, 0)
    assert (ingests.status(REF).offset, ingests.status(REF).path.stat().st_size) == (0, 0)
    await passes(copy, 6000)
    assert ingests.status(REF).offset == 0
    await copy.close(keep=True)
    assert (list(ingests), os.listdir(tmp_path / "ingest")) == ([], [])


async def test_after_giving_up_the_record_claims_no_later_bytes(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    copy = await opened(ingests)
    await passes(copy, 5000)
    await ingests.sync()
    assert await trio.to_thread.run_sync(copy.give_up, 0)
    # The daemon is killed here.
    killed = IngestStore(content, nursery, "era")
    again = await opened(killed)
    assert again.start == 0
    await passes(again, 4000)
    await again.close(keep=True)
    cut = await opened(IngestStore(content, nursery, "another era"))
    assert cut.start == 0
    await cut.close(keep=False)


async def test_removing_the_ref_stops_the_copy_at_once(
    tmp_path: Path, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    copy = await opened(ingests)
    await passes(copy, 3000)
    nursery.start_soon(ingests.abort, REF)
    assert isinstance(await copy.wait_removed(), Cancelled)
    await passes(copy, 5000)
    await copy.close(keep=True)
    assert (list(ingests), os.listdir(tmp_path / "ingest")) == ([], [])


async def test_a_failed_sync_ends_the_copy(ingests: IngestStore, disk: FaultyDisk) -> None:
    copy = await opened(ingests)
    await passes(copy, 2000)
    await ingests.sync()
    await passes(copy, 4000)
    disk.errors["fsync"] = 5
    await ingests.sync()
    del disk.errors["fsync"]
    await passes(copy, 6000)
    assert ingests.status(REF).offset == 2000
    await copy.close(keep=True)
    again = await opened(ingests)
    assert (again.start, await prefix(again)) == (2000, DATA[:2000])
    await again.close(keep=True)


async def test_a_prefix_that_cannot_be_read_is_a_verification_failure(ingests: IngestStore) -> None:
    copy = await opened(ingests)
    await passes(copy, 3000)
    await copy.close(keep=True)
    again = await opened(ingests)
    os.truncate(ingests.status(REF).path, 100)
    with pytest.raises(VerificationFailed, match="ends at byte 100, expected 3000"):
        await prefix(again)
    await again.close(keep=False)


async def test_a_ref_with_a_writer_is_busy_and_a_smaller_total_is_too_large(ingests: IngestStore) -> None:
    copy = await opened(ingests)
    with pytest.raises(Busy):
        await opened(ingests)
    await passes(copy, 3000)
    await copy.close(keep=True)
    with pytest.raises(TooLarge):
        await ingests.copy(DIGEST, 2999)
    await (await opened(ingests)).close(keep=False)


async def test_only_an_ingest_without_a_writer_is_reclaimed(ingests: IngestStore) -> None:
    copy = await opened(ingests)
    await passes(copy, 3000)
    seen = ingests.status(REF)
    with pytest.raises(Busy):
        await ingests.reclaim(seen)
    await copy.close(keep=True)
    await ingests.reclaim(seen)
    assert list(ingests) == []
    again = await opened(ingests)
    await passes(again, 10)
    await again.close(keep=True)
    with pytest.raises(Busy, match="in use again"):
        await ingests.reclaim(seen)


async def test_a_cancelled_reclaim_can_be_repeated(ingests: IngestStore) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(b"some")
    with trio.CancelScope() as scope:
        scope.cancel()
        await ingests.reclaim(ingests.status("r"))
    assert scope.cancelled_caught
    async with await ingests.open("r") as writer:
        assert writer.offset == 4
