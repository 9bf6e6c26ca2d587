"""The truncatable, resumable writer: the contract of `content/ingest/<ref>`, tested without a mount."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.content.ingests import store as ingest_store
from imgfs.content.ingests.refs import ref_id
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.errors import (
    AlreadyExists,
    Busy,
    Cancelled,
    ImgfsError,
    Invalid,
    NotFound,
    OffsetMismatch,
    TimedOut,
    TooLarge,
    VerificationFailed,
)
from imgfs.oci.digest import Digest

DATA = b"some bytes" * 1000
DIGEST = Digest.of(DATA)
SHA512 = Digest.of(DATA, "sha512")


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


@pytest.fixture
async def ingests(content: ContentStore, nursery: trio.Nursery) -> IngestStore:
    return IngestStore(content, nursery)


async def fill(ingests: IngestStore, ref: str, data: bytes = DATA, **declared: object) -> None:
    async with await ingests.open(ref, **declared) as writer:
        await writer.write(data)


async def hashed(ingests: IngestStore, ref: str) -> None:
    while ingests.status(ref).hashed < ingests.status(ref).offset:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("digest", [DIGEST, SHA512])
@pytest.mark.parametrize("expected", [None, DIGEST, SHA512])
async def test_what_is_written_and_committed_is_stored(
    tmp_path: Path, content: ContentStore, ingests: IngestStore, digest: Digest, expected: Digest | None
) -> None:
    await fill(ingests, "r", expected=expected)
    if expected not in (None, digest):
        with pytest.raises(VerificationFailed, match="expected sha"):
            await ingests.commit("r", digest)
        return
    info = await ingests.commit("r", digest)
    assert (info.digest, info.size) == (digest, len(DATA))
    assert await content.read(digest) == DATA
    assert content.path(digest).stat().st_mode & 0o777 == 0o400
    assert list(ingests) == []
    assert os.listdir(tmp_path / "ingest") == []
    with pytest.raises(NotFound):
        await ingests.commit("r", digest)


async def test_an_empty_blob_is_a_blob(content: ContentStore, ingests: IngestStore) -> None:
    await fill(ingests, "r", b"", total=0)
    await ingests.commit("r", Digest.of(b""))
    assert await content.read(Digest.of(b"")) == b""


async def test_the_directory_holds_data_and_a_readable_record(tmp_path: Path, ingests: IngestStore) -> None:
    await fill(ingests, "layer/one", total=10**6, expected=DIGEST)
    directory = tmp_path / "ingest" / ref_id("layer/one")
    assert (directory / "data").read_bytes() == DATA
    assert '"ref": "layer/one"' in (directory / "meta").read_text()
    status = ingests.status("layer%2Fone")
    assert (status.ref, status.offset, status.hashed) == ("layer/one", len(DATA), len(DATA))
    assert (status.digest, status.total, status.expected) == (DIGEST, 10**6, DIGEST)
    assert status.started <= status.updated
    assert not status.is_live


@pytest.mark.parametrize("ref", ["", ".", "..", "a" * 256, "/" * 86, "new\nline", "\x7f", "\x85", "nul\0"])
async def test_an_invalid_ref_is_refused(ingests: IngestStore, ref: str) -> None:
    for call in (ingests.open(ref), ingests.commit(ref, DIGEST), ingests.abort(ref), ingests.rename(ref, "x")):
        with pytest.raises(Invalid, match="ref"):
            await call


@pytest.mark.parametrize("ref", ["a" * 255, "/" * 85, "..a", "a%2Fb", "a%2fb", "ü" * 127, os.fsdecode(b"\xff\xfe")])
async def test_any_other_name_is_a_valid_ref(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, ref: str
) -> None:
    await fill(ingests, ref)
    again = IngestStore(content, nursery)
    async with await again.open(ref) as writer:
        assert writer.offset == len(DATA)
        assert writer.ref == ref.replace("%2F", "/")


async def test_a_resumed_ingest_hashes_its_prefix_while_more_comes(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    data = os.urandom(9 << 20)
    await fill(ingests, "r", data[: 8 << 20], total=len(data))
    again = IngestStore(content, nursery)
    assert again.status("r").hashed == 0
    async with await again.open("r") as writer:
        assert (writer.offset, writer.total) == (8 << 20, len(data))
        for at in range(8 << 20, 9 << 20, 1 << 18):
            await writer.write_at(at, data[at : at + (1 << 18)])
    await again.commit("r", Digest.of(data))
    assert await content.read(Digest.of(data)) == data


async def test_the_digest_of_a_resumed_ingest_is_hashed_on_request(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(9 << 20)
    await fill(ingests, "r", data)
    again = IngestStore(content, nursery)
    with trio.CancelScope() as scope:
        scope.cancel()
        await again.digest("r")
    assert scope.cancelled_caught
    monkeypatch.setattr(ingest_store, "DIGEST_SECONDS", 0)
    with pytest.raises(TimedOut, match="read the attribute again"):
        await again.digest("r")
    monkeypatch.undo()
    assert await again.digest("r") == Digest.of(data)
    assert again.status("r").hashed == len(data)
    with pytest.raises(NotFound):
        await again.digest("unknown")


async def test_removing_an_ingest_ends_a_wait_for_its_digest(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    await fill(ingests, "r", bytes(64 << 20))
    again = IngestStore(content, nursery)
    async with trio.open_nursery() as waiters:

        async def wait() -> None:
            with pytest.raises(Cancelled, match="was removed"):
                await again.digest("r")

        waiters.start_soon(wait)
        await trio.lowlevel.checkpoint()
        await again.abort("r")


async def test_an_ingest_of_an_earlier_run_is_committed_without_a_writer(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    await fill(ingests, "r")
    await IngestStore(content, nursery).commit("r", DIGEST)
    assert DIGEST in content


async def test_writes_append_or_start_again_and_nothing_else(content: ContentStore, ingests: IngestStore) -> None:
    async with await ingests.open("r", total=len(DATA), expected=DIGEST) as writer:
        await writer.write_at(0, b"wrong")
        await writer.write_at(5, b"")
        for offset in (1, 4, 6, 1 << 60):
            with pytest.raises(OffsetMismatch, match="expected 5"):
                await writer.write_at(offset, b"x")
        await writer.write_at(0, b"")
        assert writer.offset == 5
        await writer.write_at(0, DATA)
        assert (writer.offset, writer.total, writer.expected) == (len(DATA), len(DATA), DIGEST)
    await ingests.commit("r", DIGEST)
    assert await content.read(DIGEST) == DATA


async def test_truncating_starts_again_or_changes_nothing(ingests: IngestStore) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(b"abc")
        await writer.truncate(3)
        for size in (1, 2, 4, -1):
            with pytest.raises(Invalid, match="expected 0 or its size, 3"):
                await writer.truncate(size)
        assert ingests.status("r").path.read_bytes() == b"abc"
        await writer.truncate(0)
        assert writer.offset == ingests.status("r").hashed == 0
        assert ingests.status("r").path.read_bytes() == b""
        await writer.truncate(0)
        await writer.write(DATA)
    assert ingests.status("r").digest == DIGEST


async def test_nothing_is_written_past_the_total(ingests: IngestStore) -> None:
    async with await ingests.open("r", total=4) as writer:
        await writer.write(b"abc")
        for call in (writer.write(b"de"), writer.write_at(3, b"de"), writer.write_at(0, b"abcde")):
            with pytest.raises(TooLarge, match="the 4 bytes"):
                await call
        assert writer.offset == 3
        await writer.write(b"d")


async def test_the_latest_declaration_wins_and_survives(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    await fill(ingests, "r", total=10**5)
    await ingests.declare("r", total=10**6, expected=SHA512)
    await hashed(ingests, "r")
    assert ingests.status("r").digest == SHA512
    await ingests.declare("r", total=len(DATA))
    for store in (ingests, IngestStore(content, nursery)):
        assert (store.status("r").total, store.status("r").expected) == (len(DATA), SHA512)
    await ingests.declare("r", expected=None, total=None)
    assert (ingests.status("r").total, ingests.status("r").expected) == (None, None)
    await ingests.commit("r", DIGEST)


async def test_an_impossible_declaration_is_refused_and_changes_nothing(ingests: IngestStore) -> None:
    await fill(ingests, "r", total=10**5)
    with pytest.raises(TooLarge, match="has 10000 bytes already"):
        await ingests.declare("r", total=9999)
    for total in (-1, 2**53 + 1):
        with pytest.raises(Invalid, match="total"):
            await ingests.declare("r", total=total)
    with pytest.raises(TooLarge):
        await ingests.open("r", total=1)
    assert (ingests.status("r").total, ingests.status("r").is_live) == (10**5, False)
    with pytest.raises(NotFound):
        await ingests.declare("other", total=1)


@pytest.mark.parametrize("ref", [f"layer-{DIGEST}", f"x-y-{DIGEST}"])
async def test_opening_a_ref_of_a_stored_blob_is_refused(content: ContentStore, ingests: IngestStore, ref: str) -> None:
    await fill(ingests, ref, b"half")
    await fill(ingests, "plain", b"half", expected=DIGEST)
    writer = await ingests.open("live")
    await content.add(DIGEST, DATA)
    with pytest.raises(AlreadyExists, match="nothing to send"):
        await ingests.open(ref)
    with pytest.raises(AlreadyExists):
        await ingests.open("plain")
    with pytest.raises(AlreadyExists):
        await ingests.declare("live", expected=DIGEST)
    with pytest.raises(AlreadyExists):
        await writer.write(b"x")
    with pytest.raises(AlreadyExists):
        await ingests.open("new", expected=DIGEST)
    assert list(ingests) == []
    await writer.close()
    assert os.listdir(content.ingest) == []


async def test_a_ref_without_a_valid_digest_promises_nothing(content: ContentStore, ingests: IngestStore) -> None:
    await content.add(DIGEST, DATA)
    for ref in (str(DIGEST), f"-{DIGEST}", f"layer-{DIGEST}x", f"layer-{str(DIGEST).upper()}"):
        await fill(ingests, ref, b"x")


@pytest.mark.parametrize(
    ("data", "total", "expected", "said"),
    [
        (DATA[:-1], len(DATA), None, "got 9999 bytes, expected 10000"),
        (DATA, len(DATA) + 1, None, "expected 10001"),
        (DATA[:-1] + b"X", len(DATA), None, "the bytes have digest sha256:"),
        (DATA, None, Digest.of(b"other"), "commit says"),
        (b"", None, None, "the bytes have digest"),
    ],
)
async def test_wrong_bytes_are_not_stored_and_the_ingest_stays(
    content: ContentStore, ingests: IngestStore, data: bytes, total: int | None, expected: Digest | None, said: str
) -> None:
    await fill(ingests, "r", data, total=total, expected=expected)
    for _ in range(2):
        with pytest.raises(VerificationFailed, match=said):
            await ingests.commit("r", DIGEST)
    assert DIGEST not in content
    assert ingests.status("r").offset == len(data)
    await ingests.declare("r", total=None, expected=None)
    async with await ingests.open("r") as writer:
        await writer.write_at(0, DATA)
    await ingests.commit("r", DIGEST)


async def test_committing_a_stored_digest_removes_the_ingest(content: ContentStore, ingests: IngestStore) -> None:
    await fill(ingests, "r")
    await content.add(DIGEST, DATA)
    with pytest.raises(AlreadyExists):
        await ingests.commit("r", DIGEST)
    assert list(ingests) == []
    assert os.listdir(content.ingest) == []


async def test_a_second_writer_is_busy_and_touches_nothing(ingests: IngestStore) -> None:
    async with await ingests.open("r") as writer:
        await writer.write(b"abc")
        assert ingests.status("r").is_live
        with pytest.raises(Busy, match="another writer"):
            await ingests.open("r")
        with pytest.raises(Busy, match="close it first"):
            await ingests.commit("r", DIGEST)
        with pytest.raises(Busy):
            await ingests.rename("r", "s")
        await fill(ingests, "s")
        with pytest.raises(Busy):
            await ingests.rename("s", "r")
        await writer.write(b"def")
    assert [status.offset for status in ingests] == [6, len(DATA)]


@pytest.mark.parametrize("what", ["open", "commit", "rename"])
async def test_operations_wait_for_a_writer_that_is_closing(
    ingests: IngestStore, nursery: trio.Nursery, what: str
) -> None:
    writer = await ingests.open("r")
    await writer.write(DATA)
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: ingests.open("r"),
        "commit": lambda: ingests.commit("r", DIGEST),
        "rename": lambda: ingests.rename("r", "s"),
    }
    nursery.start_soon(calls[what])
    await trio.testing.wait_all_tasks_blocked()
    await writer.close()
    await trio.testing.wait_all_tasks_blocked()
    await writer.close()


async def test_one_of_two_racing_writers_gets_the_ref(ingests: IngestStore) -> None:
    won: list[int] = []
    lost: list[ImgfsError] = []

    async def write(number: int) -> None:
        try:
            writer = await ingests.open("r")
        except Busy as error:
            lost.append(error)
            return
        await writer.write(b"%d" % number)
        won.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(write, number)
    assert (len(won), len(lost)) == (1, 4)
    assert ingests.status("r").path.read_bytes() == b"%d" % won[0]


async def test_the_second_of_two_equal_commits_is_refused(content: ContentStore, ingests: IngestStore) -> None:
    outcomes: list[str] = []

    async def commit(ref: str) -> None:
        await fill(ingests, ref)
        try:
            await ingests.commit(ref, DIGEST)
            outcomes.append("stored")
        except AlreadyExists:
            outcomes.append("exists")

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(commit, f"{number}")
    assert sorted(outcomes) == ["exists"] * 4 + ["stored"]
    assert list(ingests) == []
    assert await content.read(DIGEST) == DATA


async def test_an_aborted_writer_is_cancelled_and_the_ref_is_free(ingests: IngestStore) -> None:
    writer = await ingests.open("r", total=3)
    await writer.write(b"abc")
    path = ingests.status("r").path
    await ingests.abort("r")
    assert not path.exists()
    for call in (writer.write(b"x"), writer.write_at(0, b"x"), writer.truncate(0), writer.fsync()):
        with pytest.raises(Cancelled, match="was removed"):
            await call
    with pytest.raises(NotFound):
        await ingests.abort("r")
    await fill(ingests, "r")
    await writer.close()
    await ingests.commit("r", DIGEST)


async def test_a_renamed_ingest_keeps_everything_and_replaces_an_idle_one(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    await fill(ingests, ".r.123", total=len(DATA))
    await fill(ingests, "r", b"replaced")
    await ingests.rename(".r.123", "r")
    await ingests.rename("r", "r")
    for store in (ingests, IngestStore(content, nursery)):
        assert [(status.ref, status.offset, status.total) for status in store] == [("r", len(DATA), len(DATA))]
    assert len(os.listdir(content.ingest)) == 1
    await fill(ingests, ".r.123", b"the old name is free")
    await ingests.commit("r", DIGEST)


async def test_renames_that_are_refused(content: ContentStore, ingests: IngestStore) -> None:
    with pytest.raises(NotFound):
        await ingests.rename("r", "s")
    await fill(ingests, "r", b"x")
    with pytest.raises(Invalid):
        await ingests.rename("r", "..")
    await content.add(DIGEST, DATA)
    with pytest.raises(AlreadyExists):
        await ingests.rename("r", f"layer-{DIGEST}")
    assert list(ingests) == []


async def test_cancellation_releases_and_leaves_a_prefix(content: ContentStore, ingests: IngestStore) -> None:
    for steps in range(40):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def work() -> None:
                    await fill(ingests, "r", total=len(DATA))
                    await ingests.commit("r", DIGEST)

                nursery.start_soon(work)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        for status in ingests:
            assert not status.is_live
            assert DATA.startswith(status.path.read_bytes())
        if list(ingests):
            await ingests.abort("r")
        if DIGEST in content:
            await content.delete(DIGEST)
        assert os.listdir(content.ingest) == []


async def test_no_descriptor_stays_open(ingests: IngestStore) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for ref in "abcd":
        await fill(ingests, ref, DATA + ref.encode())
    await ingests.commit("a", Digest.of(DATA + b"a"))
    await ingests.abort("b")
    await ingests.rename("c", "d")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_ten_thousand_blobs_are_known_without_asking_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ContentStore(tmp_path)
    for number in range(10_000):
        name = f"{number:064x}"[::-1]
        (tmp_path / "blobs/sha256" / name[:2]).mkdir(exist_ok=True)
        (tmp_path / "blobs/sha256" / name[:2] / name).touch()
    store = ContentStore(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("the disk was asked")

    for call in ("stat", "scandir", "open"):
        monkeypatch.setattr(os, call, refuse)
    assert len(list(store)) == 10_000
    assert store.info(Digest("sha256:" + "0" * 64)) is not None
