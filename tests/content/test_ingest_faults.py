"""Disks that are full, failing or read-only: written bytes stay, and lost bytes are always reported."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.content.ingests.ingest import RECORD_BYTES, RECORD_SECONDS
from imgfs.content.ingests.refs import ref_id
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.disk.durable import TEMPORARY
from imgfs.errors import ImgfsError, NoSpace, NotFound, OffsetMismatch, ReadOnly, StorageFailed
from imgfs.oci.digest import Digest
from tests.content.disks import FaultyDisk
from tests.content.full_disk import fill, small_disk
from tests.support.programs import run

DATA = b"some bytes" * 1000
DIGEST = Digest.of(DATA)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def content(tmp_path: Path, disk: FaultyDisk) -> ContentStore:
    return ContentStore(tmp_path, disk=disk)


@pytest.fixture
async def ingests(content: ContentStore, nursery: trio.Nursery) -> IngestStore:
    return IngestStore(content, nursery, era="one")


async def test_bytes_on_a_full_disk_stay_and_the_same_writer_continues(
    content: ContentStore, ingests: IngestStore, disk: FaultyDisk
) -> None:
    async with await ingests.open("r", total=len(DATA)) as writer:
        disk.room = 4321
        with pytest.raises(NoSpace, match="make room"):
            await writer.write_at(0, DATA)
        assert writer.offset == ingests.status("r").hashed == 4321
        with pytest.raises(NoSpace):
            await writer.write_at(4321, DATA[4321:])
        assert ingests.status("r").path.read_bytes() == DATA[:4321]
        disk.room = None
        await writer.write_at(4321, DATA[4321:])
    await ingests.commit("r", DIGEST)
    assert await content.read(DIGEST) == DATA


async def test_a_disk_that_is_really_full(tmp_path: Path, nursery: trio.Nursery) -> None:
    data = os.urandom(256 << 10)
    with small_disk(tmp_path / "disk", 1 << 20) as small:
        content = ContentStore(small)
        ingests = IngestStore(content, nursery)
        async with await ingests.open("r") as writer:
            filler = fill(small)
            with pytest.raises(NoSpace):
                await writer.write(data)
            with pytest.raises(NoSpace):
                await ingests.open("other")
            assert data.startswith(ingests.status("r").path.read_bytes())
            filler.unlink()
            await writer.write_at(writer.offset, data[writer.offset :])
        await ingests.commit("r", Digest.of(data))
        async with await ingests.open("s") as writer:
            await writer.write(b"x")
        fill(small)
        await ingests.abort("s")
        assert os.listdir(content.ingest) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_failed_sync_is_final_and_the_ingest_falls_back(
    content: ContentStore, ingests: IngestStore, disk: FaultyDisk, code: int
) -> None:
    error = NoSpace if code == errno.ENOSPC else StorageFailed
    async with await ingests.open("r", total=len(DATA)) as writer:
        await writer.write(DATA[:1000])
        await writer.fsync()
        await writer.write(DATA[1000:])
        disk.errors["fsync"] = code
        with pytest.raises(error, match="bytes 1000 to 10000 are lost, continue at byte 1000"):
            await writer.fsync()
        disk.errors.clear()
        assert writer.offset == ingests.status("r").durable == 1000
        for call in (writer.fsync(), writer.write(b"x"), writer.write_at(10000, b"")):
            with pytest.raises(error, match="continue at byte 1000"):
                await call
        await writer.write_at(1000, DATA[1000:5000])
        assert ingests.status("r").path.stat().st_size == 5000
        with pytest.raises(OffsetMismatch):
            await writer.write_at(1000, b"x")
        await writer.write_at(5000, DATA[5000:])
    await ingests.commit("r", DIGEST)
    assert await content.read(DIGEST) == DATA


async def test_after_a_failed_sync_commits_fail_until_a_writer_continues(
    content: ContentStore, ingests: IngestStore, disk: FaultyDisk
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
    disk.errors["fsync"] = errno.EIO
    for _ in range(2):
        with pytest.raises(StorageFailed, match="continue at byte 0"):
            await ingests.commit("r", DIGEST)
        disk.errors.clear()
    assert DIGEST not in content
    assert not content.path(DIGEST).exists()
    async with await ingests.open("r") as writer:
        assert writer.offset == 0
        await writer.write(DATA)
    await ingests.commit("r", DIGEST)


@pytest.mark.parametrize("call", ["seal", "rename", "fsync_directory", "mkdir"])
async def test_a_commit_without_a_durable_name_fails_and_loses_nothing(
    content: ContentStore, ingests: IngestStore, disk: FaultyDisk, call: str
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
    disk.errors[call] = errno.EIO
    with pytest.raises(StorageFailed, match="ingest 'r': Input/output error"):
        await ingests.commit("r", DIGEST)
    assert DIGEST not in content
    assert list(content.root.glob("blobs/*/*/*")) == []
    assert ingests.status("r").offset == len(DATA)
    disk.errors.clear()
    await ingests.commit("r", DIGEST)
    assert await content.read(DIGEST) == DATA


async def test_the_next_write_raises_a_failed_background_sync(
    ingests: IngestStore, disk: FaultyDisk, mock_clock: trio.testing.MockClock
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
        disk.errors["fsync"] = errno.EIO
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(RECORD_SECONDS)
        while not disk.calls.count("fsync"):
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StorageFailed, match="continue at byte 0"):
            await writer.write_at(len(DATA), b"more")
        disk.errors.clear()
        await writer.write_at(0, b"from the start")


async def recorded(ingests: IngestStore, ref: str, durable: int) -> None:
    while ingests.status(ref).durable < durable:
        await trio.lowlevel.checkpoint()


async def test_bytes_are_recorded_after_five_seconds(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
    assert ingests.status("r").durable == 0
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(RECORD_SECONDS)
    await recorded(ingests, "r", len(DATA))
    assert IngestStore(content, nursery, era="two").status("r").offset == len(DATA)


async def test_bytes_are_recorded_after_a_fixed_amount(
    ingests: IngestStore, mock_clock: trio.testing.MockClock
) -> None:
    piece = bytes(4 << 20)
    async with await ingests.open("r") as writer:
        for _ in range(RECORD_BYTES // len(piece)):
            await writer.write(piece)
        await recorded(ingests, "r", RECORD_BYTES)
    assert mock_clock.current_time() == 0


async def test_the_end_of_the_daemon_makes_all_ingests_durable(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, disk: FaultyDisk
) -> None:
    async with AsyncExitStack() as writers:
        for ref in "abc":
            await (await writers.enter_async_context(await ingests.open(ref))).write(DATA)
        disk.errors["fsync"] = errno.EIO
        await ingests.sync()
        disk.errors.clear()
    for ref in "abc":
        async with await ingests.open(ref) as writer:
            await writer.write(DATA)
    await ingests.sync()
    assert [status.durable for status in IngestStore(content, nursery, era="two")] == [len(DATA)] * 3


async def test_after_a_boot_an_ingest_is_cut_to_its_last_sync_and_after_a_kill_it_is_not(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    async with await ingests.open("r", total=len(DATA)) as writer:
        await writer.write(DATA[:4000])
        await writer.fsync()
        await writer.write(DATA[4000:])
    assert IngestStore(content, nursery, era="one").status("r").offset == len(DATA)
    for _ in range(2):
        cut = IngestStore(content, nursery, era="two")
        assert cut.status("r").offset == cut.status("r").durable == 4000
        assert cut.status("r").path.stat().st_size == 4000
    async with await cut.open("r") as writer:
        await writer.write(DATA[4000:])
    await cut.commit("r", DIGEST)


@pytest.mark.parametrize("how", ["fsync", "commit", "end"])
async def test_the_next_start_does_not_trust_bytes_of_a_failed_sync(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, disk: FaultyDisk, how: str
) -> None:
    """After a failed sync, a second one succeeds wrongly, because the kernel has marked the pages clean."""
    async with await ingests.open("r") as writer:
        await writer.write(DATA[:4000])
        await writer.fsync()
        await writer.write(DATA[4000:])
        disk.errors["fsync"] = errno.EIO
        if how == "fsync":
            with pytest.raises(StorageFailed):
                await writer.fsync()
    if how == "commit":
        with pytest.raises(StorageFailed):
            await ingests.commit("r", DIGEST)
    elif how == "end":
        await ingests.sync()
    disk.errors.clear()
    assert ingests.status("r").offset == IngestStore(content, nursery, era="one").status("r").offset == 4000


async def test_an_ingest_that_cannot_be_removed_can_be_resumed(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, disk: FaultyDisk
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA[:4000])
    disk.errors["rename"] = errno.EIO
    with pytest.raises(StorageFailed):
        await ingests.abort("r")
    disk.errors.clear()
    assert ingests.status("r").offset == IngestStore(content, nursery, era="one").status("r").offset == 4000
    async with await ingests.open("r") as writer:
        await writer.write(DATA[4000:])
    await ingests.commit("r", DIGEST)
    assert list(ingests) == list(IngestStore(content, nursery, era="one")) == []


@pytest.mark.parametrize("call", ["truncate", "fsync", "write", "create", "rename", "fsync_directory"])
async def test_after_a_boot_a_failing_disk_loses_no_synced_byte(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, disk: FaultyDisk, call: str
) -> None:
    async with await ingests.open("r", total=len(DATA)) as writer:
        await writer.write(DATA[:4000])
        await writer.fsync()
        await writer.write(DATA[4000:6000])
    disk.errors[call] = errno.ENOSPC
    if call == "write":
        disk.room = 0
    cut = IngestStore(content, nursery, era="two")
    assert cut.status("r").offset == cut.status("r").durable == 4000
    disk.errors.clear()
    disk.room = None
    assert IngestStore(content, nursery, era="three").status("r").offset == 4000
    async with await cut.open("r") as writer:
        await writer.write(DATA[4000:])
    await cut.commit("r", DIGEST)


async def test_an_ingest_that_cannot_be_read_now_stays_on_disk(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
    meta = content.ingest / ref_id("r") / "meta"
    kept = meta.rename(content.ingest / "meta")
    meta.symlink_to(meta)  # ELOOP: neither absent nor malformed
    assert list(IngestStore(content, nursery, era="one")) == []
    meta.unlink()
    kept.rename(meta)
    assert IngestStore(content, nursery, era="one").status("r").offset == len(DATA)


@pytest.mark.parametrize("meta", [b"", b"\0" * 100, b"{}", b"[1]", b"\xff", b'{"ref":"r"}', None])
async def test_a_malformed_ingest_is_removed_without_affecting_others(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, meta: bytes | None
) -> None:
    for ref in ("bad", "good"):
        async with await ingests.open(ref) as writer:
            await writer.write(DATA)
    path = content.ingest / ref_id("bad") / "meta"
    path.unlink() if meta is None else path.write_bytes(meta)
    again = IngestStore(content, nursery, era="one")
    assert [status.ref for status in again] == ["good"]
    assert os.listdir(content.ingest) == [ref_id("good")]


async def test_data_with_a_second_hard_link_is_never_written(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
    os.link(ingests.status("r").path, content.root / "second")
    assert list(IngestStore(content, nursery, era="one")) == []
    assert (content.root / "second").read_bytes() == DATA


async def test_data_that_is_shorter_than_it_should_is_not_stored(content: ContentStore, ingests: IngestStore) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(DATA)
    other = ingests.status("r").path
    os.truncate(other, 10)
    await ingests.declare("r", expected=Digest.of(DATA, "sha512"))
    with pytest.raises(StorageFailed, match="ends at byte 10"):
        await ingests.commit("r", Digest.of(DATA, "sha512"))
    assert list(content) == []


@pytest.mark.parametrize("call", ["mkdir", "create", "write"])
async def test_an_ingest_that_cannot_be_started_leaves_nothing(
    content: ContentStore, ingests: IngestStore, disk: FaultyDisk, call: str
) -> None:
    disk.errors[call] = errno.ENOSPC
    with pytest.raises(NoSpace):
        await ingests.open("r")
    assert list(ingests) == []
    assert os.listdir(content.ingest) == []
    disk.errors.clear()
    await (await ingests.open("r")).close()


@pytest.mark.parametrize("call", ["create", "fsync", "rename", "fsync_directory"])
async def test_a_declaration_that_the_disk_refuses_is_not_loaded(
    ingests: IngestStore, disk: FaultyDisk, call: str
) -> None:
    async with await ingests.open("r", total=7) as writer:
        disk.errors[call] = errno.EIO
        with pytest.raises(StorageFailed):
            await writer_declares(ingests)
        disk.errors.clear()
        assert writer.total == 7
        await writer_declares(ingests)
        assert writer.total == 8


async def writer_declares(ingests: IngestStore) -> None:
    await ingests.declare("r", total=8)


class Forgetting(FaultyDisk):
    """A disk that fails a number of times to make a name durable, although the name exists."""

    due = 0

    def fsync_directory(self, path: Path) -> None:
        super().fsync_directory(path)
        if self.due:
            self.due -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("failures", [1, 2], ids=["once", "when it is put back, too"])
async def test_the_next_start_does_not_complete_a_refused_rename(
    tmp_path: Path, nursery: trio.Nursery, failures: int
) -> None:
    disk = Forgetting()
    ingests = IngestStore(ContentStore(tmp_path, disk=disk), nursery, era="one")
    for ref in ("one", "two"):
        async with await ingests.open(ref) as writer:
            await writer.write(ref.encode())
            await writer.fsync()
    disk.due = failures
    with pytest.raises(StorageFailed):
        await ingests.rename("one", "two")
    async with await ingests.open("two") as writer:
        await writer.write(b" more")
        await writer.fsync()
    await ingests.sync()
    again = IngestStore(ContentStore(tmp_path), nursery, era="one")
    assert {one.ref: one.path.read_bytes() for one in again} == {"one": b"one", "two": b"two more"}


class Halting(FaultyDisk):
    """A disk that refuses to move a directory to a name with a given prefix."""

    to: str | None = None

    def rename(self, old: Path, new: Path) -> None:
        if self.to is not None and new.name.startswith(self.to):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().rename(old, new)


HALF_WAY = [TEMPORARY, ref_id("new")]
"""The two moves of a rename: the replaced directory goes away, then the other one takes its place."""


@pytest.fixture
def halting() -> Halting:
    return Halting()


@pytest.fixture(params=HALF_WAY, ids=["what is replaced", "what replaces"])
async def half_way(
    tmp_path: Path, nursery: trio.Nursery, halting: Halting, request: pytest.FixtureRequest
) -> IngestStore:
    """Prepare a rename of `old` over `new` in which one of the two directories was not moved."""
    ingests = IngestStore(ContentStore(tmp_path, disk=halting), nursery, era="one")
    for ref, data in (("old", DATA), ("new", b"replaced"), ("third", b"another")):
        async with await ingests.open(ref) as writer:
            await writer.write(data)
            await writer.fsync()
    halting.to = request.param
    with pytest.raises(StorageFailed):
        await ingests.rename("old", "new")
    return ingests


def found_by_the_next_start(content: ContentStore, nursery: trio.Nursery) -> dict[str, bytes]:
    again = IngestStore(ContentStore(content.ingest.parent), nursery, era="one")
    assert sorted(os.listdir(content.ingest)) == sorted(ref_id(status.ref) for status in again)
    return {status.ref: status.path.read_bytes() for status in again}


async def test_the_next_start_completes_a_half_done_rename(
    half_way: IngestStore, content: ContentStore, nursery: trio.Nursery
) -> None:
    assert [status.ref for status in half_way if status.path.read_bytes() == DATA] == ["new"]
    assert found_by_the_next_start(content, nursery) == {"new": DATA, "third": b"another"}


async def test_a_read_only_start_knows_a_half_done_rename(
    half_way: IngestStore, tmp_path: Path, nursery: trio.Nursery
) -> None:
    again = IngestStore(ContentStore(tmp_path, read_only=True), nursery, era="one")
    assert {status.ref: status.path.read_bytes() for status in again} == {"new": DATA, "third": b"another"}


async def test_a_half_done_rename_that_cannot_be_completed_loses_nothing(
    half_way: IngestStore, content: ContentStore, nursery: trio.Nursery
) -> None:
    with pytest.raises(StorageFailed):
        await half_way.commit("new", DIGEST)
    with pytest.raises(StorageFailed):
        await half_way.rename("new", "newer")
    with pytest.raises(StorageFailed):
        await half_way.abort("new")
    assert found_by_the_next_start(content, nursery) == {"new": DATA, "third": b"another"}


@pytest.mark.parametrize(
    ("act", "left"),
    [
        (lambda ingests: ingests.abort("new"), {"third": b"another"}),
        (lambda ingests: ingests.reclaim(ingests.status("new")), {"third": b"another"}),
        (lambda ingests: ingests.commit("new", DIGEST), {"third": b"another"}),
        (lambda ingests: ingests.rename("new", "old"), {"old": DATA, "third": b"another"}),
        (lambda ingests: ingests.rename("new", "newer"), {"newer": DATA, "third": b"another"}),
        (lambda ingests: ingests.rename("third", "old"), {"new": DATA, "old": b"another"}),
        (lambda ingests: ingests.rename("third", "new"), {"new": b"another"}),
        (lambda ingests: begins(ingests, "old"), {"new": DATA, "old": b"begun", "third": b"another"}),
    ],
    ids=["abort", "reclaim", "commit", "back", "on", "in the place that it left", "over it", "begin anew"],
)
async def test_a_half_done_rename_is_completed_before_other_operations(
    half_way: IngestStore,
    content: ContentStore,
    halting: Halting,
    nursery: trio.Nursery,
    act: Callable[[IngestStore], Awaitable[object]],
    left: dict[str, bytes],
) -> None:
    halting.to = None
    await act(half_way)
    assert found_by_the_next_start(content, nursery) == left


async def begins(ingests: IngestStore, ref: str) -> None:
    async with await ingests.open(ref) as writer:
        await writer.write(b"begun")
        await writer.fsync()


async def test_a_read_only_state_directory_can_be_read(tmp_path: Path, nursery: trio.Nursery) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as small:
        content = ContentStore(small)
        ingests = IngestStore(content, nursery)
        await content.add(DIGEST, DATA)
        async with await ingests.open("r") as writer:
            await writer.write(DATA[:10])
        await ingests.sync()
        await trio.testing.wait_all_tasks_blocked()
        run("mount", "-o", "remount,ro", str(small))
        content = ContentStore(small)
        ingests = IngestStore(content, nursery)
        assert await content.read(DIGEST) == DATA
        assert ingests.status("r").offset == 10
        other = Digest.of(b"x")
        for call in (
            ingests.open("r"),
            ingests.open("new"),
            ingests.abort("r"),
            ingests.declare("r", total=100),
            content.delete(DIGEST),
            content.add(other, b"x"),
        ):
            with pytest.raises(ReadOnly, match="make it writable"):
                await call
        assert DIGEST in content


async def test_an_empty_read_only_directory_is_an_empty_store(tmp_path: Path, nursery: trio.Nursery) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as small:
        run("mount", "-o", "remount,ro", str(small))
        content = ContentStore(small)
        ingests = IngestStore(content, nursery)
        assert (list(content), list(ingests)) == ([], [])
        with pytest.raises(NotFound):
            ingests.status("r")
        with pytest.raises(ImgfsError, match="read-only"):
            await ingests.open("r")
