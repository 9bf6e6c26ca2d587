"""kill -9 and a failing disk at every step of every change, and the state after the next start."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from imgfs.disk.durable import make_directory
from imgfs.errors import ImgfsError, NoSpace, NotFound, StorageFailed
from imgfs.snapshots.root import RootAttributes
from imgfs.snapshots.store import SnapshotStore
from tests.content.full_disk import fill, small_disk

from .steps import at_step, dies, kill
from .storing import Warehouse

Picture = dict[str, object]
Work = Callable[[SnapshotStore], Awaitable[object]]

CHANGES: dict[str, Work] = {
    "prepare": lambda store: store.prepare("new"),
    "set_parent": lambda store: store.set_parent("k", "x"),
    "mark_used": lambda store: store.mark_used("k", RootAttributes(0o711, 1, 2, 3, ((b"user.k", b"v"),))),
    "commit": lambda store: store.commit("k", "name"),
    "view": lambda store: store.view("new", "x"),
    "rename_view": lambda store: store.rename_view("v", "w"),
    "remove active": lambda store: store.remove("active/k"),
    "remove committed": lambda store: store.remove("y"),
    "remove view": lambda store: store.remove("v"),
    "set_label": lambda store: store.set_label("x", "k", b"v"),
    "remove_label": lambda store: store.remove_label("y", "kept"),
}


async def scene(state: Path) -> None:
    """Make one snapshot of each kind, with files."""
    make_directory(state)
    warehouse = Warehouse(state)
    await warehouse.committed("x")
    await warehouse.committed("y", "x")
    await warehouse.store.prepare("k")
    upper = warehouse.store.upper("active/k")
    (upper / "d/e").mkdir(parents=True)
    (upper / "d/e/f").write_bytes(b"f")
    for name in ("v", "w"):
        await warehouse.store.view(name, "x")
    await warehouse.store.set_label("y", "kept", b"1")
    warehouse.close()


def picture(state: Path) -> Picture:
    """Return all that a store reports after a start and its sweep. The sweep must leave nothing else on disk."""
    warehouse = Warehouse(state)
    store = warehouse.store
    trio.run(store.sweep)
    shown: Picture = {}
    for info in store:
        files = sorted(str(path) for path in store.upper(info.id).rglob("*")) if info.kind.value != "view" else []
        shown[info.id] = (info.kind, info.parent, info.used, files, store.labels(info.id), store.stack(info.id))
    numbers = sorted(str(info.number) for info in store if info.kind.value != "view")
    assert sorted(warehouse.directories()) == sorted(numbers)
    assert store.strays() == []
    warehouse.close()
    return shown


def perform(state: Path, work: Work) -> None:
    warehouse = Warehouse(state)
    trio.run(work, warehouse.store)
    warehouse.close()


def fresh(pristine: Path, at: Path) -> Path:
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(pristine, at, symlinks=True)
    return at


@pytest.mark.parametrize("change", CHANGES)
def test_kill_at_every_step_leaves_all_or_nothing(tmp_path: Path, change: str) -> None:
    pristine, state, work = tmp_path / "pristine", tmp_path / "state", CHANGES[change]
    trio.run(scene, pristine)
    before = picture(fresh(pristine, state))
    perform(fresh(pristine, state), work)
    after = picture(state)
    assert before != after
    step, outcomes = 0, []
    while True:
        step += 1
        fresh(pristine, state)

        def killed(number: int = step) -> None:
            with at_step(number, kill):
                perform(state, work)

        if not dies(killed):
            break
        outcomes.append(picture(state))
        assert outcomes[-1] in (before, after), f"step {step}"
    assert picture(state) == after
    assert step > 2
    assert outcomes[0] == before
    first_after = outcomes.index(after)
    assert outcomes == [before] * first_after + [after] * (len(outcomes) - first_after), "no way back"


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, StorageFailed), (errno.ENOSPC, NoSpace)])
@pytest.mark.parametrize("change", CHANGES)
def test_a_failing_disk_is_raised_and_leaves_all_or_nothing(
    tmp_path: Path, change: str, number: int, error: type[ImgfsError]
) -> None:
    pristine, state, work = tmp_path / "pristine", tmp_path / "state", CHANGES[change]
    trio.run(scene, pristine)
    before = picture(fresh(pristine, state))
    perform(fresh(pristine, state), work)
    after = picture(state)

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    step = 0
    while True:
        step += 1
        warehouse = Warehouse(fresh(pristine, state))
        try:
            with at_step(step, fail) as taken:
                trio.run(work, warehouse.store)
            outcome = after
        except error:
            outcome = before
        except OSError:
            # Replace the transaction itself. The tests of the database cover the mapping of sqlite's errors.
            outcome = before
        ids = {info.id for info in warehouse.store}
        warehouse.close()
        assert picture(state) == outcome, f"step {step}"
        assert ids == set(outcome)
        if taken() < step:
            break


async def prepare_many(store: SnapshotStore) -> None:
    for number in range(1000):
        await store.prepare(str(number))


async def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        warehouse = Warehouse(disk)
        await warehouse.store.prepare("k")
        filler = fill(disk)
        with pytest.raises(NoSpace):
            await prepare_many(warehouse.store)
        made = len(warehouse.store)
        assert len(warehouse.directories()) == made
        filler.unlink()
        await warehouse.store.prepare("again")
        assert len(warehouse.reopen()) == made + 1
        warehouse.close()


async def test_a_lost_directory_is_reported_and_affects_no_other_snapshot(warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    await warehouse.committed("y", "x")
    await warehouse.committed("z")
    await warehouse.store.prepare("k")
    for id in ("x", "active/k"):
        shutil.rmtree(warehouse.store.upper(id).parent)
    store = warehouse.reopen()
    assert [info.id for info in store if info.damaged] == ["active/k", "x"]
    for attempt in (store.upper, store.stack):
        with pytest.raises(StorageFailed, match="snapshot x: its directory 1 is lost"):
            attempt("x")
    with pytest.raises(StorageFailed, match="snapshot x"):
        store.stack("y")
    with pytest.raises(StorageFailed, match="lost"):
        await store.commit("k", "new")
    assert store.stack("z").lowers
    for id in ("y", "x", "active/k"):
        await store.remove(id)
    assert [info.id for info in warehouse.reopen()] == ["z"]


async def test_directories_of_a_lost_database_are_reported_and_never_changed(warehouse: Warehouse) -> None:
    await warehouse.committed("x")
    await warehouse.store.prepare("empty")
    upper = warehouse.store.upper("x")
    warehouse.close()
    for path in warehouse.state.glob("imgfs.db*"):
        path.unlink()
    warehouse.open()
    store = warehouse.store
    await store.sweep()
    assert store.strays() == [upper]
    assert (upper / "x").read_bytes() == b"x"
    assert warehouse.directories() == ["1"]
    assert (await store.prepare("new")).number == 3
    await store.sweep()
    assert (upper / "x").exists()


async def test_the_sweep_removes_everything_with_a_temporary_name(warehouse: Warehouse) -> None:
    shelf = warehouse.state / "snapshots"
    for name in (".tmp-a", ".tmp-b"):
        work = shelf / name / "work/work"
        work.mkdir(parents=True)
        (work / "f").write_bytes(b"f")
        os.mknod(work / "whiteout", stat.S_IFCHR, 0)
        work.chmod(0)
    (shelf / "not-a-number").mkdir()
    store = warehouse.reopen()
    made = await store.prepare("k")
    await store.sweep()
    assert warehouse.directories() == [str(made.number), "not-a-number"]


async def test_a_failed_deletion_is_retried_at_the_next_start(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warehouse.committed("x")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "immutable")

    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", refuse)
        await warehouse.store.remove("x")
    with pytest.raises(NotFound):
        warehouse.store.stat("x")
    assert len(warehouse.directories()) == 1
    await warehouse.reopen().sweep()
    assert warehouse.directories() == []


async def test_a_cancelled_prepare_leaves_nothing(warehouse: Warehouse) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warehouse.store.prepare, "k")
        await trio.testing.wait_all_tasks_blocked(0)
        nursery.cancel_scope.cancel()
    made = [info.id for info in warehouse.store]
    assert len(warehouse.directories()) == len(made)
    assert [info.id for info in warehouse.reopen()] == made
