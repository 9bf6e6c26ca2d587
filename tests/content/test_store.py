"""The blob store: only verified bytes, durable when acknowledged, no traces of failed writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from imgfs.content.store import ContentStore
from imgfs.content.unproven import AHEAD_BYTES, final_path
from imgfs.disk.durable import temporary_name
from imgfs.errors import ImgfsError, NoSpace, NotFound, StorageFailed, TooLarge, TooManyOpen, VerificationFailed
from imgfs.oci.digest import Digest
from tests.content.disks import FaultyDisk
from tests.content.full_disk import Calls, fill, small_disk

DATA = b"some bytes" * 1000
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if not path.is_dir()]


async def write(store: ContentStore, *pieces: bytes, digest: Digest = DIGEST, total: int = len(DATA)) -> None:
    async with store.writer(digest, total) as writer:
        for piece in pieces:
            await writer.write(piece)
        await writer.commit()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [DATA, b""])
async def test_an_added_blob_is_read_only_and_found_after_reopening(
    tmp_path: Path, store: ContentStore, algorithm: str, data: bytes
) -> None:
    digest = Digest.of(data, algorithm)
    await store.add(digest, data)
    for opened in (store, ContentStore(tmp_path)):
        info = opened.info(digest)
        assert info is not None
        assert (info.digest, info.size, digest in opened, list(opened)) == (digest, len(data), True, [info])
        assert await opened.read(digest) == data
    assert store.path(digest).stat().st_mode & 0o777 == 0o400
    assert info.committed == store.path(digest).stat().st_mtime_ns


async def test_adding_again_writes_nothing(store: ContentStore) -> None:
    await store.add(DIGEST, DATA)
    before = store.path(DIGEST).stat()
    await store.add(DIGEST, b"not even looked at")
    assert store.path(DIGEST).stat() == before


async def test_a_blob_that_cannot_be_removed_stays_stored(tmp_path: Path) -> None:
    disk = FaultyDisk()
    store = ContentStore(tmp_path, disk=disk)
    await store.add(DIGEST, DATA)
    disk.errors["unlink"] = errno.EIO
    with pytest.raises(StorageFailed):
        await store.delete(DIGEST)
    assert await store.read(DIGEST) == DATA
    assert list(store) == list(ContentStore(tmp_path))
    disk.errors.clear()
    await store.delete(DIGEST)
    assert list(store) == list(ContentStore(tmp_path)) == []


async def test_pieces_of_any_kind_are_joined(store: ContentStore) -> None:
    await write(store, DATA[:1], memoryview(DATA)[1:5000].tobytes(), b"", DATA[5000:])
    assert await store.read(DIGEST) == DATA


@pytest.mark.parametrize(
    ("pieces", "total", "error", "said"),
    [
        ([DATA[:-1]], len(DATA), VerificationFailed, "got 9999 bytes, expected 10000"),
        ([DATA[:-1] + b"X"], len(DATA), VerificationFailed, "they are not kept"),
        ([DATA], len(DATA) - 1, TooLarge, "more than the 9999 bytes"),
        ([DATA, b"X"], len(DATA), TooLarge, "more than the 10000 bytes"),
        ([], len(DATA), VerificationFailed, "got 0 bytes"),
        ([DATA], len(DATA) + 1, VerificationFailed, "expected 10001"),
    ],
)
async def test_wrong_bytes_are_refused_and_leave_nothing(
    tmp_path: Path, store: ContentStore, pieces: list[bytes], total: int, error: type[ImgfsError], said: str
) -> None:
    with pytest.raises(error, match=said):
        await write(store, *pieces, total=total)
    assert DIGEST not in store
    assert files(tmp_path) == []


async def test_a_writer_left_without_commit_leaves_nothing(tmp_path: Path, store: ContentStore) -> None:
    with trio.CancelScope() as scope:
        async with store.writer(DIGEST, len(DATA)) as writer:
            await writer.write(DATA)
            assert DIGEST not in store
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert files(tmp_path) == []


async def test_two_writers_of_one_digest_do_not_disturb_each_other(tmp_path: Path, store: ContentStore) -> None:
    async with store.writer(DIGEST, len(DATA)) as one, store.writer(DIGEST, len(DATA)) as other:
        await one.write(DATA[:10])
        await other.write(DATA)
        await one.write(DATA[10:])
        await other.commit()
        reader = store.open(DIGEST)
        await one.commit()
    assert os.pread(reader, len(DATA), 0) == await store.read(DIGEST) == DATA
    os.close(reader)
    assert files(tmp_path) == [store.path(DIGEST)]


async def test_deleting_is_immediate_and_open_descriptors_stay_readable(tmp_path: Path, store: ContentStore) -> None:
    await store.add(DIGEST, DATA)
    reader = store.open(DIGEST)
    await store.delete(DIGEST)
    assert DIGEST not in store
    assert os.pread(reader, len(DATA), 0) == DATA
    os.close(reader)
    assert files(tmp_path) == []
    with pytest.raises(NotFound):
        await store.delete(DIGEST)
    with pytest.raises(NotFound):
        store.open(DIGEST)
    with pytest.raises(NotFound):
        await store.read(DIGEST)
    await store.add(DIGEST, DATA)
    assert await store.read(DIGEST) == DATA


async def test_a_cancelled_removal_is_completed(tmp_path: Path, store: ContentStore) -> None:
    await store.add(DIGEST, DATA)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.delete(DIGEST)
    assert DIGEST not in store
    assert files(tmp_path) == []


@pytest.mark.parametrize("how", ["open", "read"])
async def test_a_blob_without_a_file_is_no_longer_stored(store: ContentStore, how: str) -> None:
    await store.add(DIGEST, DATA)
    store.path(DIGEST).unlink()
    with pytest.raises(NotFound):
        os.close(store.open(DIGEST)) if how == "open" else await store.read(DIGEST)
    assert DIGEST not in store


@pytest.mark.parametrize(("code", "error"), [(errno.EIO, StorageFailed), (errno.EMFILE, TooManyOpen)])
async def test_a_blob_that_cannot_be_opened_is_still_stored(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch, code: int, error: type[ImgfsError]
) -> None:
    await store.add(DIGEST, DATA)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(error, match=os.strerror(code)):
        store.open(DIGEST)
    assert DIGEST in store


def test_a_start_sweeps_temporary_files_and_ignores_unknown_ones(tmp_path: Path) -> None:
    ContentStore(tmp_path)
    (tmp_path / "ingest" / temporary_name()).write_bytes(b"half")
    shelf = tmp_path / "blobs" / "sha256"
    right = shelf / DIGEST.hex[:2] / DIGEST.hex
    for path in (right, shelf / "zz" / DIGEST.hex, shelf / "stray", right.with_name("x" * 64), right.with_name("ab")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(DATA)
    (right.parent / (DIGEST.hex[:-1] + "0")).mkdir()
    store = ContentStore(tmp_path)
    assert [info.digest for info in store] == [DIGEST]
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_a_verified_file_is_adopted_without_a_copy(tmp_path: Path, store: ContentStore) -> None:
    verified = tmp_path / "verified"
    verified.write_bytes(DATA)
    await store.adopt(DIGEST, verified)
    assert store.path(DIGEST).stat().st_ino == verified.stat().st_ino
    verified.unlink()
    assert await store.read(DIGEST) == DATA
    assert DIGEST in ContentStore(tmp_path)
    await store.adopt(DIGEST, tmp_path / "is not looked at")


async def test_adopting_keeps_an_existing_file(tmp_path: Path, store: ContentStore) -> None:
    await ContentStore(tmp_path).add(DIGEST, DATA)
    verified = tmp_path / "verified"
    verified.write_bytes(DATA)
    await store.adopt(DIGEST, verified)
    assert DIGEST in store
    assert store.path(DIGEST).stat().st_ino != verified.stat().st_ino


async def test_stored_blob_becomes_the_same_file_as_one_of_the_same_bytes(tmp_path: Path, store: ContentStore) -> None:
    verified = tmp_path / "verified"
    verified.write_bytes(DATA)
    await store.share(DIGEST, verified)
    assert DIGEST not in store
    await store.add(DIGEST, DATA)
    with os.fdopen(store.open(DIGEST), "rb") as reader:
        for _ in range(2):
            await store.share(DIGEST, verified)
            assert store.path(DIGEST).samefile(verified)
        assert reader.read() == DATA
    assert files(tmp_path / "ingest") == []
    for opened in (store, ContentStore(tmp_path)):
        assert await opened.read(DIGEST) == DATA
        info = opened.info(DIGEST)
        assert info is not None
        assert info.committed == verified.stat().st_mtime_ns


@pytest.mark.parametrize("call", ["link", "rename", "fsync"])
async def test_disk_that_refuses_to_share_leaves_the_blob(
    tmp_path: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "verified").write_bytes(DATA)
    await store.add(DIGEST, DATA)
    Calls(monkeypatch).errors[call] = OSError(28, "No space left on device")
    await store.share(DIGEST, tmp_path / "verified")
    assert await store.read(DIGEST) == DATA
    assert files(tmp_path / "ingest") == []


async def test_a_large_blob_is_written_as_bytes_then_name_then_directory(
    tmp_path: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    much = bytes(AHEAD_BYTES + 1)
    await store.add(Digest.of(much), much)
    final = store.path(Digest.of(much))
    (bytes_synced, shelf_synced, renamed, name_synced) = calls.seen
    assert bytes_synced[0] == "fsync"
    assert bytes_synced[1].startswith(str(tmp_path / "ingest"))
    assert shelf_synced == ("fsync", str(final.parent.parent))
    assert (renamed, name_synced) == (("rename", str(final)), ("fsync", str(final.parent)))


async def test_a_small_blob_gets_its_final_name_after_bytes_and_provisional_name_are_durable(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    await store.add(DIGEST, DATA)
    final = store.path(DIGEST)
    unproven = calls.seen[1][1]
    assert final_path(Path(unproven)) == final
    assert calls.seen == [
        ("fsync", str(final.parent.parent)),
        ("rename", unproven),
        ("fsync", unproven),
        ("fsync", str(final.parent)),
        ("rename", str(final)),
    ]


async def test_the_directory_is_synced_after_a_link_and_after_a_delete(
    tmp_path: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verified").write_bytes(DATA)
    calls = Calls(monkeypatch)
    await store.adopt(DIGEST, tmp_path / "verified")
    final = store.path(DIGEST)
    assert calls.seen[-2:] == [("link", str(final)), ("fsync", str(final.parent))]
    await store.delete(DIGEST)
    assert calls.seen[-1] == ("fsync", str(final.parent))


@pytest.mark.parametrize("call", ["fsync", "rename"])
async def test_a_commit_that_the_disk_refuses_is_not_acknowledged(
    tmp_path: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = Calls(monkeypatch)
    calls.errors[call] = OSError(5, "Input/output error")
    with pytest.raises(StorageFailed, match=f"content {DIGEST}: Input/output error"):
        await store.add(DIGEST, DATA)
    assert DIGEST not in store
    assert files(tmp_path) == []
    calls.errors.clear()
    await store.add(DIGEST, DATA)
    assert DIGEST in ContentStore(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "link"])
async def test_adopting_raises_the_error_of_the_disk(
    tmp_path: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "verified").write_bytes(DATA)
    Calls(monkeypatch).errors[call] = OSError(28, "No space left on device")
    with pytest.raises(NoSpace, match="make room"):
        await store.adopt(DIGEST, tmp_path / "verified")
    assert DIGEST not in store


async def test_a_full_disk_is_no_space_leaves_nothing_and_heals(tmp_path: Path) -> None:
    data = os.urandom(256 << 10)
    digest = Digest.of(data)
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = ContentStore(disk)
        filler = fill(disk)
        with pytest.raises(NoSpace):
            await store.add(digest, data)
        assert digest not in store
        assert files(disk) == [filler]
        filler.unlink()
        await store.add(digest, data)
        assert await store.read(digest) == data


async def test_deleting_works_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = ContentStore(disk)
        await store.add(DIGEST, DATA)
        fill(disk)
        await store.delete(DIGEST)
        assert DIGEST not in ContentStore(disk)
