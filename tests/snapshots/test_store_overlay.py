"""Stacks of the store, mounted: the mount shows the tree to which the exported layers merge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.mounts import unmount
from imgfs.snapshots.export import export_layer
from imgfs.snapshots.store import SnapshotStore
from tests.snapshots.storing import used
from tests.support.programs import run
from tests.support.trees import Ignore, compare_trees, snapshot_tree

from .overlays import OPTIONS, change_everything, fill_lower, merged_tree
from .storing import Warehouse

LINKS = Ignore("links", "overlay without an index breaks hard links of lower files when it copies one up")


@contextmanager
def mounted(store: SnapshotStore, id: str, at: Path) -> Iterator[Path]:
    """The rootfs of a snapshot, held while the block runs."""
    at.mkdir(exist_ok=True)
    stack = store.stack(id)
    options = f"{OPTIONS},lowerdir={':'.join(map(str, [*stack.lowers, store.empty]))}"
    if stack.upper is not None:
        options += f",upperdir={stack.upper},workdir={stack.work}"
    with used(store, id):
        run("mount", "-t", "overlay", "overlay", "-o", options, at)
        try:
            yield at
        finally:
            unmount(str(at), detach=False)


def chain(store: SnapshotStore, id: str) -> list[bytes]:
    """Return the exported layers from the base up to `id`."""
    parent = store.stat(id).parent
    return [*(chain(store, parent) if parent else []), b"".join(export_layer(store.upper(id)))]


async def grow(store: SnapshotStore, name: str, parent: str | None) -> None:
    await store.prepare(name)
    if parent is not None:
        await store.set_parent(name, parent)
    await store.mark_used(name)


async def test_a_stack_of_three_snapshots(warehouse: Warehouse, tmp_path: Path) -> None:
    store, at = warehouse.store, tmp_path / "rootfs"
    work = {"base": fill_lower, "middle": change_everything, "top": undo_some}
    parent: str | None = None
    for name, change in work.items():
        await grow(store, name, parent)
        with mounted(store, f"active/{name}", at) as rootfs:
            change(rootfs)
            expected = snapshot_tree(rootfs)
        assert compare_trees(expected, merged_tree(chain(store, f"active/{name}")), [LINKS]) == []
        await store.commit(name, name)
        with mounted(store, name, at) as rootfs:
            assert compare_trees(expected, snapshot_tree(rootfs), [LINKS]) == []
        parent = name
    assert store.stack("top").lowers == tuple(store.upper(name) for name in ("top", "middle", "base"))


def undo_some(root: Path) -> None:
    run("rm", "-r", root / "new", root / "opaque")
    (root / "gone").write_bytes(b"back again")
    (root / "opaque").write_bytes(b"a file now")
    os.chmod(root, 0o1777)


async def test_siblings_do_not_see_each_others_changes(warehouse: Warehouse, tmp_path: Path) -> None:
    store = warehouse.store
    await warehouse.committed("base")
    for name in ("one", "two"):
        await grow(store, name, "base")
        with mounted(store, f"active/{name}", tmp_path / name) as rootfs:
            (rootfs / name).touch()
            assert sorted(os.listdir(rootfs)) == sorted(["base", name])


async def test_a_committed_snapshot_takes_no_writes(warehouse: Warehouse, tmp_path: Path) -> None:
    await warehouse.committed("base")
    await warehouse.store.view("v", "base")
    for id in ("base", "v"):
        with mounted(warehouse.store, id, tmp_path / "rootfs") as rootfs, pytest.raises(OSError, match="Read-only"):
            (rootfs / "new").touch()


async def test_files_left_by_an_overlay_are_removed(warehouse: Warehouse, tmp_path: Path) -> None:
    store = warehouse.store
    await warehouse.committed("base")
    await grow(store, "k", "base")
    with mounted(store, "active/k", tmp_path / "rootfs") as rootfs:
        (rootfs / "base").unlink()
        os.mkfifo(rootfs / "fifo")
        (rootfs / "d").mkdir(mode=0)
    assert (store.upper("active/k").parent / "work/work").stat().st_mode & 0o777 == 0
    assert (await store.usage("active/k")).inodes == 4
    await store.remove("active/k")
    assert warehouse.directories() == ["1"]
