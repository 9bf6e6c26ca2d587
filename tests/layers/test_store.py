"""The layer store: served when verified, durable when synced, holes for zeros, and repair of what can be derived."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imgfs.check.content import check_layer
from imgfs.disk.durable import temporary_name
from imgfs.errors import ImgfsError, NoSpace, NotFound, StorageFailed
from imgfs.layers.index import SIZE_BYTES, LayerIndex, stored_weight
from imgfs.layers.store import LayerStore
from imgfs.testing.images import Dir, File, layer
from tests.content.full_disk import Calls, fill, small_disk
from tests.layers.passes import described, files, passed, paths, stored

MADE = layer([Dir("d"), File("d/f", os.urandom(5000)), File("zeros", bytes(8 << 20)), File("g", b"end")])
PATHS = [b"d", b"d/f", b"zeros", b"g"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    opened = LayerStore(tmp_path)
    yield opened
    opened.close()


def reopened(root: Path) -> LayerStore:
    return LayerStore(root)


async def test_a_settled_layer_is_its_tar_and_is_found_after_reopening(tmp_path: Path, store: LayerStore) -> None:
    await stored(store, MADE)
    again = reopened(tmp_path)
    for opened in (store, again):
        layer = opened.get(MADE.diff_id)
        assert (MADE.diff_id in opened, list(opened), layer.size()) == (True, [layer], len(MADE.tar))
        assert os.pread(layer.descriptor(), len(MADE.tar) + 1, 0) == MADE.tar
        assert paths(layer.entries()) == PATHS
        assert paths(layer.entries()) == PATHS
    again.close()
    assert files(tmp_path) == [f"layers/sha256/{MADE.diff_id.hex}/{name}" for name in ("index", "tar")]


async def test_a_layer_is_served_before_it_is_settled_and_all_the_way(tmp_path: Path, store: LayerStore) -> None:
    writer = store.writer().__enter__()
    writer.append(MADE.tar)
    writer.seal()
    layer = writer.adopt(MADE.diff_id)
    assert store.get(MADE.diff_id) is layer
    assert os.pread(layer.descriptor(), 600, 0) == MADE.tar[:600]
    early = layer.tar
    writer.make_durable()
    writer.__exit__()
    assert not early.exists()
    assert layer.tar.read_bytes() == MADE.tar
    assert os.pread(layer.descriptor(), 600, 0) == MADE.tar[:600]


async def test_a_layer_can_be_opened_in_the_midst_of_its_renaming(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    read: list[bytes] = []
    with store.writer() as writer:
        writer.append(MADE.tar)
        writer.seal()
        layer = writer.adopt(MADE.diff_id)

        def rename_and_read(*names: Path) -> None:
            rename(*names)
            read.append(os.pread(layer.descriptor(), 600, 0))

        monkeypatch.setattr(os, "rename", rename_and_read)
        writer.make_durable()
    assert read == [MADE.tar[:600]]


async def test_runs_of_zeros_are_holes_and_read_as_zeros(store: LayerStore) -> None:
    layer = await stored(store, MADE)
    assert layer.allocated() < 3 << 20
    assert os.pread(layer.descriptor(), len(MADE.tar), 0) == MADE.tar


async def test_short_runs_of_zeros_are_written_for_a_hole_ends_the_kernels_read_ahead(store: LayerStore) -> None:
    mixed = layer([File("mixed", (b"x" * 4096 + bytes(256 << 10)) * 16)])
    assert (await stored(store, mixed)).allocated() >= len(mixed.tar)


async def test_a_tar_that_ends_in_zeros_has_its_full_size(store: LayerStore) -> None:
    made = layer([File("z", bytes(300_000))])
    assert (await stored(store, made)).size() == len(made.tar)


async def test_an_equal_layer_is_kept_once(tmp_path: Path, store: LayerStore) -> None:
    first = await stored(store, MADE)
    again = await stored(store, layer(MADE.tar, "zstd"))
    assert again is first
    assert len(files(tmp_path)) == 2


async def test_two_equal_layers_at_once_leave_one(tmp_path: Path, store: LayerStore) -> None:
    with store.writer() as one, store.writer() as other:
        one.append(MADE.tar)
        other.append(MADE.tar)
        one.seal()
        other.seal()
        assert one.adopt(MADE.diff_id) is other.adopt(MADE.diff_id)
        other.make_durable()
        one.make_durable()
    assert len(files(tmp_path)) == 2
    assert MADE.diff_id in reopened(tmp_path)


async def test_what_was_not_adopted_leaves_nothing(tmp_path: Path, store: LayerStore) -> None:
    await passed(store, described(MADE), MADE.blob)
    assert MADE.diff_id not in store
    assert files(tmp_path) == []
    with pytest.raises(NotFound, match="is not stored here"):
        store.get(MADE.diff_id)


async def test_what_was_not_settled_is_gone_after_a_crash(tmp_path: Path, store: LayerStore) -> None:
    await stored(store, MADE, durable=False)
    again = reopened(tmp_path)
    assert (list(again), files(tmp_path)) == ([], [])


def test_leftovers_are_swept_and_strange_names_harm_nobody(tmp_path: Path) -> None:
    shelf = tmp_path / "layers" / "sha256"
    for name in (temporary_name(), "x" * 64, "stray", "A" * 64):
        (shelf / name).mkdir(parents=True)
        (shelf / name / "tar").write_bytes(b"")
    (shelf / ("0" * 64)).write_bytes(b"a file where a directory belongs")
    assert list(LayerStore(tmp_path)) == []
    assert sorted(path.name for path in shelf.iterdir()) == ["0" * 64, "A" * 64, "stray", "x" * 64]


async def test_a_layer_without_its_tar_is_not_here_and_can_come_again(tmp_path: Path, store: LayerStore) -> None:
    (await stored(store, MADE)).tar.unlink()
    again = reopened(tmp_path)
    assert MADE.diff_id not in again
    await stored(again, MADE)
    again.close()
    assert MADE.diff_id in reopened(tmp_path)


def takes_no_change(*_: object) -> None:
    raise OSError(errno.EROFS, "no change")


@pytest.mark.parametrize("damage", [None, b"", b"imgfs layer index 1\n", b"garbage" * 50])
async def test_a_lost_or_damaged_index_is_made_again_from_the_tar(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    index = (await stored(store, MADE)).tar.with_name("index")
    index.unlink() if damage is None else index.write_bytes(damage)
    again = reopened(tmp_path)
    layer = again.get(MADE.diff_id)
    with monkeypatch.context() as patch:
        patch.setattr("imgfs.layers.layer.reindex", takes_no_change)
        assert paths(layer.entries()) == PATHS
    assert stored_weight(index) is None
    assert paths(layer.entries()) == PATHS
    assert paths(LayerIndex.open(index)) == PATHS
    assert layer.weight() == stored_weight(index)
    assert len(files(tmp_path)) == 2
    again.close()


def make_outdated(index: Path) -> None:
    data = index.read_bytes()
    index.write_bytes(data[:SIZE_BYTES] + b"imgfs layer index 1\n" + bytes(99))


async def test_an_index_of_another_version_still_tells_of_a_cut_tar(tmp_path: Path, store: LayerStore) -> None:
    tar = (await stored(store, MADE)).tar
    make_outdated(tar.with_name("index"))
    assert MADE.diff_id in reopened(tmp_path)
    os.truncate(tar, 1024)
    assert MADE.diff_id not in reopened(tmp_path)


async def test_an_index_of_another_version_is_no_damage_and_a_cut_tar_is(tmp_path: Path, store: LayerStore) -> None:
    tar = (await stored(store, MADE)).tar
    make_outdated(tar.with_name("index"))
    assert check_layer(tar.parent, "it", deep=True, moved=lambda _: None) is None
    os.truncate(tar, 1024)
    found = check_layer(tar.parent, "it", deep=False, moved=lambda _: None)
    assert found is not None
    assert f"its tar has 1024 bytes, {len(MADE.tar)} were stored" in str(found)


async def test_a_damaged_tar_is_never_walked_into_an_index(tmp_path: Path, store: LayerStore) -> None:
    layer = await stored(store, MADE)
    layer.tar.with_name("index").unlink()
    with layer.tar.open("r+b") as file:
        file.seek(1500)
        flipped = file.read(1)[0] ^ 1
        file.seek(1500)
        file.write(bytes([flipped]))
    again = reopened(tmp_path)
    with pytest.raises(StorageFailed, match="the stored tar is damaged"):
        again.get(MADE.diff_id).entries()
    again.close()


async def test_a_discarded_layer_is_gone_from_memory_and_disk(tmp_path: Path, store: LayerStore) -> None:
    await stored(store, MADE)
    await store.discard(MADE.diff_id)
    await store.discard(MADE.diff_id)
    assert (MADE.diff_id in store, files(tmp_path)) == (False, [])
    await stored(store, MADE)
    assert MADE.diff_id in reopened(tmp_path)


async def test_the_order_is_bytes_index_directory_then_name(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    layer = await stored(store, MADE)
    shelf = layer.tar.parent.parent
    kinds = [(name, Path(subject).name) for name, subject in calls.seen]
    assert kinds[:2] == [("fsync", "tar"), ("fsync", "index")]
    assert kinds[2][1].startswith(".tmp-")
    assert calls.seen[3:] == [("rename", str(layer.tar.parent)), ("fsync", str(shelf))]


@pytest.mark.parametrize(
    ("call", "code", "error"), [("fsync", 5, StorageFailed), ("rename", 28, NoSpace), ("fsync", 122, NoSpace)]
)
async def test_a_layer_that_does_not_settle_says_why(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[ImgfsError]
) -> None:
    with store.writer() as writer:
        writer.append(MADE.tar)
        writer.seal()
        layer = writer.adopt(MADE.diff_id)
        with monkeypatch.context() as patch:
            Calls(patch).errors[call] = OSError(code, "no")
            with pytest.raises(error, match=f"layer {MADE.diff_id}: no"):
                writer.make_durable()
    is_readable = os.pread(layer.descriptor(), 600, 0) == MADE.tar[:600]
    assert is_readable == (
        call != "fsync"
    )  # the kernel may drop unsynced pages, and a later read would return the bytes on disk
    assert list(reopened(tmp_path)) == []


async def test_a_name_that_the_disk_did_not_take_is_tried_again(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, real = tmp_path / "layers/sha256", os.fsync

    def failing(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}") == str(shelf):
            raise OSError(5, "no")
        real(file)

    with store.writer() as writer:
        writer.append(MADE.tar)
        writer.seal()
        layer = writer.adopt(MADE.diff_id)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            for _ in range(2):
                with pytest.raises(StorageFailed, match="no"):
                    writer.make_durable()
                assert not store.is_durable(layer)
        writer.make_durable()
    assert store.is_durable(layer)
    assert files(tmp_path) == [f"layers/sha256/{MADE.diff_id.hex}/{name}" for name in ("index", "tar")]


async def test_names_that_a_killed_daemon_gave_are_durable_before_they_count(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored(store, MADE)
    calls = Calls(monkeypatch)
    reopened(tmp_path)
    assert ("fsync", str(tmp_path / "layers/sha256")) in calls.seen


async def test_a_lost_layer_is_served_no_more_and_told_of_once(store: LayerStore) -> None:
    await stored(store, MADE)
    layer = store.get(MADE.diff_id)
    store.lose(layer)
    store.lose(layer)
    assert MADE.diff_id not in store
    assert await store.wait_lost() == {MADE.diff_id}
    with trio.move_on_after(0.01):
        await store.wait_lost()
        pytest.fail("nothing was lost since")


async def test_a_full_disk_is_no_space_leaves_nothing_and_heals(tmp_path: Path) -> None:
    made = layer([File("f", os.urandom(256 << 10))])
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = LayerStore(disk)
        filler = fill(disk)
        with pytest.raises(NoSpace, match="make room"):
            await stored(store, made)
        filler.unlink()
        assert list((await stored(store, made)).entries())
        await store.discard(made.diff_id)
        store.close()


async def test_a_tar_that_went_away_is_a_storage_failure(tmp_path: Path, store: LayerStore) -> None:
    await stored(store, MADE)
    again = reopened(tmp_path)
    layer = again.get(MADE.diff_id)
    layer.tar.unlink()
    with pytest.raises(StorageFailed, match=f"layer {MADE.diff_id}"):
        layer.size()


async def test_a_closed_store_holds_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = LayerStore(tmp_path)
    await stored(store, MADE)
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
