"""The life of user snapshots, as in containerd's snapshotters, and every refusal."""

from __future__ import annotations

import errno
import os
from threading import Event

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imgfs.errors import AlreadyExists, Busy, Invalid, NoSpace, NotFound, NotPermitted, StorageFailed
from imgfs.oci.digest import EMPTY
from imgfs.snapshots.rows import SnapshotKind
from imgfs.snapshots.store import SnapshotStore
from imgfs.snapshots.usage import Usage
from imgfs.snapshots.walk import run_walk

from .storing import Warehouse, told, used


async def test_a_prepared_snapshot_is_active_empty_and_writable(store: SnapshotStore) -> None:
    info = await store.prepare("k")
    assert (info.id, info.kind, info.name, info.parent, info.used) == (
        "active/k",
        SnapshotKind.ACTIVE,
        "k",
        None,
        False,
    )
    stack = store.stack("active/k")
    assert (stack.lowers, stack.chain) == ((), None)
    assert stack.upper == store.upper("active/k")
    assert stack.upper is not None
    assert stack.work is not None
    assert (os.listdir(stack.upper), os.listdir(stack.work)) == ([], [])
    assert stack.upper.stat().st_mode & 0o7777 == 0o755
    assert stack.work.parent == stack.upper.parent
    assert stack.upper.parent.stat().st_mode & 0o7777 == 0o700


async def test_a_taken_key_is_refused(store: SnapshotStore, warehouse: Warehouse) -> None:
    made = await store.prepare("k")
    with pytest.raises(AlreadyExists):
        await store.prepare("k")
    assert store.find("active/k") == made
    assert len(warehouse.directories()) == 1


async def test_one_of_many_concurrent_prepares_of_a_key_succeeds(store: SnapshotStore, warehouse: Warehouse) -> None:
    got: list[object] = []

    async def prepare() -> None:
        try:
            got.append(await store.prepare("k"))
        except AlreadyExists:
            got.append(None)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(prepare)
    assert got.count(None) == 4
    assert len(warehouse.directories()) == len(store) == 1


async def test_keys_and_names_are_separate(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    await store.prepare("x")
    assert told(store) == {"x": ("committed", None), "active/x": ("active", None)}


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a\nb", "n" * 256])
async def test_malformed_keys_and_names_are_refused(store: SnapshotStore, warehouse: Warehouse, bad: str) -> None:
    await warehouse.committed("x")
    await store.prepare("k")
    for attempt in (store.prepare(bad), store.commit("k", bad), store.view(bad, "x")):
        with pytest.raises(Invalid):
            await attempt
    for name in ("active", EMPTY, f"{EMPTY}@linux-amd64"):
        for attempt in (store.commit("k", name), store.view(name, "x")):
            with pytest.raises(Invalid):
                await attempt
    assert set(told(store)) == {"x", "active/k"}


async def test_committing_frees_the_key_and_moves_nothing(store: SnapshotStore, warehouse: Warehouse) -> None:
    prepared = await store.prepare("k")
    upper = store.upper("active/k")
    (upper / "file").write_bytes(b"data")
    await store.set_label("active/k", "who", b"me")
    made = await store.commit("k", "name")
    assert (made.id, made.kind, made.number, made.created) == (
        "name",
        SnapshotKind.COMMITTED,
        prepared.number,
        prepared.created,
    )
    assert store.upper("name") == upper
    assert warehouse.disk.synced == [upper]
    assert store.labels("name") == {"who": b"me"}
    assert store.find("active/k") is None
    assert (await store.prepare("k")).number != made.number
    again = warehouse.reopen()
    assert again.find("name") == made
    assert (again.upper("name") / "file").read_bytes() == b"data"
    assert again.labels("name") == {"who": b"me"}


async def test_committing_to_a_taken_name_keeps_the_active_snapshot(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    await store.view("v", "x")
    await store.prepare("k")
    warehouse.disk.synced.clear()
    for name in ("x", "v"):
        with pytest.raises(AlreadyExists):
            await store.commit("k", name)
    assert told(store)["active/k"] == ("active", None)
    assert warehouse.disk.synced == []


async def test_a_commit_reserves_key_and_name_while_it_syncs(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    for key in ("k", "other"):
        await store.prepare(key)
    refused: list[type[Exception]] = []

    async def meddle() -> None:
        for attempt in (
            store.commit("k", "else"),
            store.remove("active/k"),
            store.set_parent("k", "x"),
            store.mark_used("k"),
            store.commit("other", "name"),
            store.view("name", "x"),
            store.prepare("k"),
        ):
            with pytest.raises((Busy, AlreadyExists)) as caught:
                await attempt
            refused.append(caught.type)
        with pytest.raises(Busy):
            store.hold("active/k")
        with pytest.raises(NotFound):
            await store.remove("name")

    warehouse.disk.sync = lambda path: trio.from_thread.run(meddle)
    store = warehouse.reopen()
    await store.commit("k", "name")
    assert refused == [Busy, Busy, Busy, Busy, AlreadyExists, AlreadyExists, AlreadyExists]
    assert set(told(store)) == {"active/other", "name", "x"}


async def test_a_snapshot_whose_sync_failed_is_never_committed(store: SnapshotStore, warehouse: Warehouse) -> None:
    await store.prepare("k")
    warehouse.disk.error = OSError(errno.EIO, "broken")
    with pytest.raises(StorageFailed, match="broken"):
        await store.commit("k", "name")
    warehouse.disk.error = None
    with pytest.raises(StorageFailed, match="lost its data"):
        await store.commit("k", "name")
    assert told(store) == {"active/k": ("active", None)}
    await store.remove("active/k")
    await store.prepare("k")
    await store.commit("k", "name")


async def test_a_full_disk_at_commit_is_no_space(store: SnapshotStore, warehouse: Warehouse) -> None:
    await store.prepare("k")
    warehouse.disk.error = OSError(errno.ENOSPC, "full")
    with pytest.raises(NoSpace):
        await store.commit("k", "name")


async def test_views_pin_their_target_and_are_removed_without_it(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    made = await store.view("v", "x")
    assert (made.kind, made.parent) == (SnapshotKind.VIEW, "x")
    assert (await store.view("w", "v")).parent == "x"
    for name in ("v", "x"):
        with pytest.raises(AlreadyExists):
            await store.view(name, "x")
    with pytest.raises(NotFound):
        await store.view("new", "nothing")
    await store.prepare("k")
    with pytest.raises(Invalid):
        await store.view("new", "active/k")
    with pytest.raises(Busy, match="children v, w; remove"):
        await store.remove("x")
    with pytest.raises(NotPermitted):
        store.upper("v")
    await store.remove("v")
    await store.remove("w")
    assert (store.upper("x") / "x").exists()
    await store.remove("x")
    assert len(warehouse.directories()) == 1


async def test_a_view_is_renamed_and_replaces_a_view(store: SnapshotStore, warehouse: Warehouse) -> None:
    for name in ("x", "y"):
        await warehouse.committed(name)
    await store.view("v", "x")
    await store.set_label("v", "k", b"old")
    made = await store.view("CuAbCdEf", "y")
    assert (await store.rename_view("CuAbCdEf", "v")).number == made.number
    for opened in (store, warehouse.reopen()):
        assert (opened.children("x"), opened.children("y"), opened.labels("v")) == ([], ["v"], {})
    store = warehouse.store
    assert await store.rename_view("v", "v") == store.stat("v")
    await store.rename_view("v", "w")
    assert store.find("v") is None
    for old, new, error in (
        ("w", "x", AlreadyExists),
        ("x", "z", NotPermitted),
        ("nothing", "z", NotFound),
        ("w", "a/b", Invalid),
    ):
        with pytest.raises(error):
            await store.rename_view(old, new)
    with used(store, "w"), pytest.raises(Busy):
        await store.rename_view("w", "z")
    assert store.children("y") == ["w"]


async def test_a_snapshot_in_use_is_neither_committed_nor_removed(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    await store.prepare("k")
    with used(store, "active/k"), used(store, "x"):
        store.hold("active/k")
        for attempt in (store.commit("k", "name"), store.remove("active/k"), store.remove("x")):
            with pytest.raises(Busy, match="in use"):
                await attempt
    with pytest.raises(Busy, match="1 times"):
        await store.commit("k", "name")
    assert store.is_held("active/k")
    store.release("active/k")
    assert not store.is_held("active/k")
    await store.commit("k", "name")
    await store.remove("x")
    with pytest.raises(NotFound):
        store.hold("x")


async def test_removing(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    await warehouse.committed("y", "x")
    await store.prepare("k")
    await store.set_parent("k", "y")
    for id in ("x", "y"):
        with pytest.raises(Busy, match="has children"):
            await store.remove(id)
    for id in ("active/k", "y", "x"):
        await store.remove(id)
        with pytest.raises(NotFound):
            await store.remove(id)
        with pytest.raises(NotFound):
            store.stack(id)
    assert (told(store), warehouse.directories()) == ({}, [])
    await store.prepare("k")
    assert set(told(warehouse.reopen())) == {"active/k"}


async def test_short_calls_do_not_wait_for_a_walk_through_a_large_tree(
    store: SnapshotStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.snapshots.removal.SHORT", 5)
    for key in ("large", "small", "kept"):
        await store.prepare(key)
    for number in range(5):
        (store.upper("active/large") / str(number)).mkdir()
    go_on, large = Event(), trio.Event()

    async def remove_large() -> None:
        await store.remove("active/large")
        large.set()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run_walk, lambda _: go_on.wait(10), None)
        await wait_all_tasks_blocked()
        try:
            await store.remove("active/small")
            await store.commit("kept", "kept")
            nursery.start_soon(remove_large)
            await wait_all_tasks_blocked(0.1)
            assert store.find("active/large") is None
            assert not large.is_set()
            assert not go_on.is_set()
        finally:
            go_on.set()
    assert len(warehouse.directories()) == 1


async def test_large_snapshots_are_removed_in_the_background(
    store: SnapshotStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.snapshots.removal.SHORT", 2)
    go_on = Event()
    for key in ("a", "b", "c"):
        await store.prepare(key)
        (store.upper(f"active/{key}") / "file").touch()
    async with trio.open_nursery() as following:
        following.start_soon(store.follow_removals)
        async with trio.open_nursery() as walking:
            for _ in range(4):
                walking.start_soon(run_walk, lambda _: go_on.wait(10), None)
            await wait_all_tasks_blocked()
            await store.remove("active/a")
            await store.remove("active/b")
            assert not go_on.is_set()
            assert len(warehouse.directories()) == 3
            go_on.set()
        await wait_all_tasks_blocked(0.1)
        assert len(warehouse.directories()) == 1
        following.cancel_scope.cancel()
    await store.remove("active/c")
    assert warehouse.directories() == []


async def test_a_stop_ends_the_removal_of_a_large_snapshot(
    store: SnapshotStore, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.snapshots.removal.SHORT", 2)
    await store.prepare("a")
    for number in range(9):
        (store.upper("active/a") / str(number)).touch()
    unlink = os.unlink
    async with trio.open_nursery() as nursery:

        def stop(*arguments: object, **options: object) -> None:
            trio.from_thread.run_sync(nursery.cancel_scope.cancel)
            unlink(*arguments, **options)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(os, "unlink", stop)
        nursery.start_soon(store.follow_removals)
        await wait_all_tasks_blocked()
        await store.remove("active/a")
        await trio.sleep_forever()
    monkeypatch.undo()
    (left,) = warehouse.directories()
    assert len(list((warehouse.state / "snapshots" / left / "upper").iterdir())) == 8
    store = warehouse.reopen()
    await store.sweep()
    assert warehouse.directories() == []


async def test_a_message_names_some_children_only(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    for n in range(8):
        await store.view(f"v{n}", "x")
    with pytest.raises(Busy, match="v0, v1, v2, v3, v4 and 3 more"):
        await store.remove("x")


async def test_image_chains_are_not_removed_here(warehouse: Warehouse) -> None:
    store, chain = warehouse.store, await warehouse.chain("a")
    for attempt in (store.remove(chain), store.usage(chain), store.rename_view(chain, "v")):
        with pytest.raises(NotPermitted, match="images with these layers"):
            await attempt
    with pytest.raises(NotPermitted):
        store.upper(chain)
    with pytest.raises(NotFound):
        await store.remove(EMPTY)
    store.hold(chain)
    store.release(chain)


async def test_numbers_are_never_reused(store: SnapshotStore, warehouse: Warehouse) -> None:
    seen: set[int] = set()
    for _ in range(3):
        for id in ("active/k", "v"):
            await warehouse.committed("x") if store.find("x") is None else None
            info = await (store.prepare("k") if id == "active/k" else store.view("v", "x"))
            assert info.number not in seen
            seen.add(info.number)
            await store.remove(id)
        store = warehouse.reopen()


async def test_usage_counts_blocks_and_hard_links_once(store: SnapshotStore, warehouse: Warehouse) -> None:
    await store.prepare("k")
    upper = store.upper("active/k")
    empty = await store.usage("active/k")
    assert empty == Usage(upper.stat().st_blocks * 512, 1)
    (upper / "a").write_bytes(os.urandom(100_000))
    os.link(upper / "a", upper / "b")
    with (upper / "hole").open("wb") as file:
        file.truncate(1 << 30)
    os.sync()
    found = await store.usage("active/k")
    assert found.inodes == 3
    assert 100_000 <= found.bytes - empty.bytes < 200_000
    await store.commit("k", "x")
    await store.view("v", "x")
    assert await store.usage("v") == Usage(0, 0)
    assert await store.usage("x") == found
    (upper / "a").unlink()
    assert await store.usage("x") == found, "measured once"
    assert await warehouse.reopen().usage("x") == found
    with pytest.raises(NotFound):
        await store.usage("nothing")


async def test_labels(store: SnapshotStore, warehouse: Warehouse) -> None:
    chain = await warehouse.chain("a")
    await warehouse.committed("x")
    for id in ("x", chain):
        await store.set_label(id, "b", b"1")
        await store.set_label(id, "a", b"\xff\0")
        await store.set_label(id, "b", b"2")
        assert list(store.labels(id).items()) == [("a", b"\xff\0"), ("b", b"2")]
        await store.remove_label(id, "a")
        with pytest.raises(NotFound):
            await store.remove_label(id, "a")
    for key, value in (("", b""), ("a\n", b""), ("k" * 245, b""), ("k", bytes(4096))):
        with pytest.raises(Invalid):
            await store.set_label("x", key, value)
    with pytest.raises(NotFound):
        await store.set_label("nothing", "a", b"")
    store = warehouse.reopen()
    assert store.labels("x") == store.labels(chain) == {"b": b"2"}
    await store.remove("x")
    await warehouse.committed("x")
    assert store.labels("x") == warehouse.reopen().labels("x") == {}


async def test_a_label_of_a_removed_snapshot_is_refused(store: SnapshotStore, warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    outcome: list[str] = []

    async def label() -> None:
        try:
            await store.set_label("x", "k", b"v")
        except NotFound as error:
            outcome.append(error.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.remove, "x")
        nursery.start_soon(label)
    rows = warehouse.database.read_now(lambda db: db.execute("SELECT count(*) FROM snapshot_labels").fetchone())
    assert rows == (0,)


async def test_names_of_any_bytes_survive(store: SnapshotStore, warehouse: Warehouse) -> None:
    name = os.fsdecode(b"raw \xff\xfe")
    await warehouse.committed(name)
    await store.prepare(name)
    await store.set_parent(name, name)
    with pytest.raises(Busy) as caught:
        await store.remove(name)
    assert (
        caught.value.message.encode()
        == rb"snapshot raw \udcff\udcfe: has children active/raw \udcff\udcfe; remove them first"
    )
    assert told(warehouse.reopen()) == {name: ("committed", None), f"active/{name}": ("active", name)}
