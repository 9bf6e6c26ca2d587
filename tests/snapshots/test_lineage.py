"""The parents of user snapshots: valid parents, until when they can change, and the layers of the rootfs."""

from __future__ import annotations

import os

import pytest

from imgfs.errors import AlreadyExists, Busy, Invalid, NotFound
from imgfs.oci.digest import EMPTY
from imgfs.snapshots.lineage import Stack
from imgfs.snapshots.root import RootAttributes
from imgfs.snapshots.store import SnapshotStore

from .storing import Warehouse, told


async def test_parents_are_chains_committed_snapshots_and_targets_of_views(warehouse: Warehouse) -> None:
    store, chain = warehouse.store, await warehouse.chain("a", "b")
    await warehouse.committed("x", chain)
    await store.view("v", "x")
    await store.view("w", chain)
    for key, parent, expected in (("1", chain, chain), ("2", "x", "x"), ("3", "v", "x"), ("4", "w", chain)):
        await store.prepare(key)
        assert (await store.set_parent(key, parent)).parent == expected
    x = store.upper("x")
    assert store.stack("active/1") == Stack((), chain, store.upper("active/1"), store.upper("active/1").parent / "work")
    assert store.stack("active/2").lowers == store.stack("active/3").lowers == (x,)
    assert store.stack("x") == store.stack("v") == Stack((x,), chain)
    assert store.stack("w") == store.stack(chain) == Stack((), chain)
    assert store.children("x") == ["active/2", "active/3", "v"]
    assert store.children(chain) == ["active/1", "active/4", "w", "x"]
    base = await warehouse.chain("a")
    assert store.children(base) == [chain]
    assert store.stat(chain).parent == base
    told_before = told(store)
    assert told(warehouse.reopen()) == told_before
    assert warehouse.store.children("x") == ["active/2", "active/3", "v"]


async def test_invalid_parents_are_refused(store: SnapshotStore, warehouse: Warehouse) -> None:
    chain = await warehouse.chain("a")
    for key in ("k", "other"):
        await store.prepare(key)
    for parent, error in (("active/other", Invalid), ("active/k", Invalid), ("nothing", NotFound), (EMPTY, NotFound)):
        with pytest.raises(error):
            await store.set_parent("k", parent)
    with pytest.raises(NotFound):
        await store.set_parent("nothing", chain)
    assert store.stat("active/k").parent is None


async def test_a_snapshot_changed_while_its_layers_were_fetched_is_not_used(warehouse: Warehouse) -> None:
    store, a, b = warehouse.store, await warehouse.chain("a"), await warehouse.chain("b")
    await store.prepare("k")
    seen = await store.set_parent("k", a)
    await store.set_parent("k", b, replacing=True)
    with pytest.raises(Busy, match="changed by another call"):
        await store.mark_used("k", seen=seen)
    await store.remove("active/k")
    await store.prepare("k")
    await store.set_parent("k", a)
    with pytest.raises(Busy, match="changed by another call"):
        await store.mark_used("k", seen=seen)
    assert not store.stat("active/k").used


async def test_a_parent_is_replaced_only_if_asked_and_never_after_use(warehouse: Warehouse) -> None:
    store, a, b = warehouse.store, await warehouse.chain("a"), await warehouse.chain("b")
    await store.prepare("k")
    await store.set_parent("k", a)
    with pytest.raises(AlreadyExists, match="ln -sfn"):
        await store.set_parent("k", b)
    assert (await store.set_parent("k", b, replacing=True)).parent == b
    assert (store.children(a), store.children(b)) == ([], ["active/k"])
    await store.clear_parent("k")
    with pytest.raises(NotFound, match="no parent"):
        await store.clear_parent("k")
    await store.set_parent("k", a)
    assert (await store.mark_used("k")).used
    store = warehouse.reopen()
    for attempt in (store.set_parent("k", b, replacing=True), store.set_parent("k", a), store.clear_parent("k")):
        with pytest.raises(Busy, match="already used"):
            await attempt
    assert store.stat("active/k").parent == a


async def test_the_root_gets_the_parents_attributes_at_the_first_use(warehouse: Warehouse) -> None:
    store, chain = warehouse.store, await warehouse.chain("a")
    looks = RootAttributes(0o1711, 12, 34, 5_000_000_006, ((b"user.k", b"v"),))
    await store.prepare("k")
    await store.set_parent("k", chain)
    await store.mark_used("k", looks)
    os.chmod(store.upper("active/k"), 0o700)
    os.setxattr(store.upper("active/k"), "trusted.overlay.origin", b"x")
    await store.mark_used("k", looks)
    await store.commit("k", "x")
    assert store.upper("x").stat().st_mode & 0o7777 == 0o700, "only the first time"
    await store.prepare("above")
    await store.set_parent("above", "x")
    await store.mark_used("above")
    upper = store.upper("active/above")
    found = upper.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o700, 12, 34)
    assert found.st_mtime_ns == store.upper("x").stat().st_mtime_ns
    assert os.listxattr(upper) == ["user.k"]


async def test_deep_stacks(warehouse: Warehouse) -> None:
    store, below = warehouse.store, await warehouse.chain("a")
    chain, names = below, [f"s{n}" for n in range(120)]
    for name in names:
        await warehouse.committed(name, below)
        below = name
    assert store.stack(names[-1]) == Stack(tuple(store.upper(name) for name in reversed(names)), chain)


async def test_unknown_snapshots_are_not_found(store: SnapshotStore) -> None:
    assert store.find("nothing") is None
    assert store.find(EMPTY) is None
    assert len(store) == 0
    for ask in (store.stat, store.stack, store.upper, store.labels, store.hold):
        with pytest.raises(NotFound):
            ask("nothing")
    assert store.children("nothing") == []
