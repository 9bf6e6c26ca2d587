"""open_snapshots: the user snapshots of a state directory, used by one program, and their mounts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import trio

from imgfs.content import open_store
from imgfs.errors import AlreadyExists, Busy, Invalid, NotFound, NotPermitted, ReadOnly, StorageFailed, Unsupported
from imgfs.kernel.mounts import mount_at, unmount
from imgfs.snapshots import Snapshots, open_snapshots
from imgfs.snapshots.rows import SnapshotKind
from tests.mount.preparing import workshop
from tests.snapshots.storing import Warehouse
from tests.support.mounted import IMGFS


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory to mount over."""
    made = tmp_path / "target"
    made.mkdir()
    return made


async def make(snapshots: Snapshots, name: str, target: Path, parent: str | None = None) -> None:
    """Make a committed snapshot with one file. The file has the snapshot's name."""
    await snapshots.prepare(name, parent)
    async with snapshots.mounted(f"active/{name}", target) as rootfs:
        (rootfs / name).write_text(name)
    await snapshots.commit(name, name)


async def test_the_directory_is_created_and_snapshots_are_found_again(tmp_path: Path, target: Path) -> None:
    state = tmp_path / "new/state"
    async with open_snapshots(state) as snapshots:
        assert list(snapshots.walk()) == []
        await make(snapshots, "one", target)
        await snapshots.prepare("two", "one")
        made = await snapshots.update("one", {"a": b"1"})
        assert (made.kind, made.parent, dict(made.labels)) == (SnapshotKind.COMMITTED, None, {"a": b"1"})
    async with open_snapshots(str(state)) as snapshots:
        assert [(info.id, info.parent) for info in snapshots.walk()] == [("active/two", "one"), ("one", None)]
        assert snapshots.stat("one") == made
        assert snapshots.children("one") == ["active/two"]
    with pytest.raises(NotPermitted, match="are closed"):
        snapshots.stat("one")


async def test_only_one_program_can_open_the_snapshots(tmp_path: Path) -> None:
    async with open_snapshots(tmp_path):
        with pytest.raises(Busy, match="as a library"):
            async with open_snapshots(tmp_path):
                pass


async def test_a_snapshot_is_in_use_while_it_is_mounted(tmp_path: Path, target: Path) -> None:
    (other := tmp_path / "other").mkdir()
    async with open_snapshots(tmp_path / "state") as snapshots:
        await make(snapshots, "low", target)
        await snapshots.prepare("k", "low")
        async with snapshots.mounted("active/k", target) as rootfs:
            assert (rootfs / "low").read_text() == "low"
            for change in (lambda: snapshots.commit("k", "done"), lambda: snapshots.remove("active/k")):
                with pytest.raises(Busy):
                    await change()
            with pytest.raises(Busy, match="already mounted"):
                async with snapshots.mounted("active/k", other):
                    pass
        await snapshots.commit("k", "done")
        async with snapshots.mounted("done", target), snapshots.mounted("done", other) as rootfs:
            with pytest.raises(OSError, match="Read-only"):
                (rootfs / "new").write_text("")
            with pytest.raises(Busy):
                await snapshots.remove("done")
        await snapshots.remove("done")
    assert mount_at(str(target)) is mount_at(str(other)) is None


async def test_a_failed_unmount_leaves_the_snapshot_in_use(tmp_path: Path, target: Path) -> None:
    async with open_snapshots(tmp_path / "state") as snapshots:
        await snapshots.prepare("k")
        file = -1
        with pytest.raises(Busy):
            async with snapshots.mounted("active/k", target) as rootfs:
                file = os.open(rootfs, os.O_RDONLY)
        with pytest.raises(Busy):
            await snapshots.commit("k", "done")
        os.close(file)
        unmount(str(target))


async def test_a_failure_and_a_cancellation_leave_nothing_mounted(tmp_path: Path, target: Path) -> None:
    async with open_snapshots(tmp_path / "state") as snapshots:
        await snapshots.prepare("k")
        with pytest.raises(NotFound):
            async with snapshots.mounted("active/k", target / "missing"):
                pass
        with trio.CancelScope() as scope:
            async with snapshots.mounted("active/k", target):
                scope.cancel()
                await trio.sleep_forever()
        assert mount_at(str(target)) is None
        await snapshots.commit("k", "done")


async def mount_by_hand(snapshots: Snapshots, id: str, target: Path) -> None:
    """Run mount(8) with the result of `mounts`."""
    (mount,) = await snapshots.mounts(id)
    command = ["mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, str(target)]
    await trio.run_process(command)


async def test_mount_accepts_the_result_of_mounts(tmp_path: Path, target: Path) -> None:
    """Also below a directory whose name contains the separator of lower directories."""
    async with open_snapshots(tmp_path / "with:colon") as snapshots:
        await make(snapshots, "low", target)
        await make(snapshots, "high", target, "low")
        await snapshots.prepare("k", "high")
        await mount_by_hand(snapshots, "active/k", target)
        try:
            assert sorted(os.listdir(target)) == ["high", "low"]
            (target / "mine").write_text("mine")
            with pytest.raises(Busy):
                await snapshots.commit("k", "done")
            with pytest.raises(Busy):
                await snapshots.remove("active/k")
        finally:
            unmount(str(target))
        await snapshots.commit("k", "done")
        await snapshots.view("v", "done")
        await mount_by_hand(snapshots, "v", target)
        try:
            assert sorted(os.listdir(target)) == ["high", "low", "mine"]
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").write_text("")
        finally:
            unmount(str(target))


async def test_setuid_works_only_where_it_is_trusted(tmp_path: Path, target: Path) -> None:
    async with open_snapshots(tmp_path / "state") as snapshots:
        await snapshots.prepare("k")
        for trusted in (True, False):
            async with snapshots.mounted("active/k", target, trusted=trusted) as rootfs:
                assert bool(os.statvfs(rootfs).f_flag & os.ST_NOSUID) is not trusted


async def test_prepare_sets_the_parent_atomically(tmp_path: Path, target: Path) -> None:
    async with open_snapshots(tmp_path / "state") as snapshots:
        await make(snapshots, "low", target)
        for parent, error in (("nothing", NotFound), ("active/k", Invalid)):
            if error is Invalid:
                await snapshots.prepare("k")
            with pytest.raises(error):
                await snapshots.prepare("new", parent)
        with pytest.raises(AlreadyExists):
            await snapshots.prepare("k", "low")
        assert [info.id for info in snapshots.walk()] == ["active/k", "low"]
    assert sorted(path.name for path in (tmp_path / "state/snapshots").iterdir()) == ["1", "2", "empty"]


async def test_read_only_changes_nothing_and_lists_existing_snapshots(tmp_path: Path, target: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(NotFound):
        async with open_snapshots(state, read_only=True):
            pass
    async with open_snapshots(state) as writing:
        await make(writing, "low", target)
        await writing.prepare("k", "low")
        async with open_snapshots(state, read_only=True) as reading:
            assert list(reading.walk()) == list(writing.walk())
            assert await reading.usage("low") == await writing.usage("low")
            async with reading.mounted("low", target) as rootfs:
                assert os.listdir(rootfs) == ["low"]
            for change in (
                lambda: reading.prepare("new"),
                lambda: reading.view("new", "low"),
                lambda: reading.commit("k", "new"),
                lambda: reading.remove("low"),
                lambda: reading.update("low", {"a": b"1"}),
                lambda: reading.mounts("active/k"),
            ):
                with pytest.raises(ReadOnly, match="opened read-only"):
                    await change()


async def test_read_only_of_an_empty_directory_is_empty(tmp_path: Path) -> None:
    async with open_snapshots(tmp_path, read_only=True) as snapshots:
        assert list(snapshots.walk()) == []
    assert os.listdir(tmp_path) == []


async def test_a_snapshot_on_an_image_is_listed_and_removed_but_not_mounted(tmp_path: Path, target: Path) -> None:
    warehouse = Warehouse(tmp_path)
    chain = await warehouse.chain("layer")
    await warehouse.committed("upon", chain)
    warehouse.close()
    async with open_snapshots(tmp_path) as snapshots:
        assert (snapshots.stat("upon").parent, snapshots.stat(chain).kind) == (chain, SnapshotKind.COMMITTED)
        with pytest.raises(Unsupported, match="imgfs mount"):
            await snapshots.mounts("upon")
        with pytest.raises(Unsupported):
            async with snapshots.mounted("upon", target):
                pass
        with pytest.raises(NotPermitted):
            await snapshots.remove(chain)
        await snapshots.remove("upon")


KILLED = """
    import os, signal, sys, trio
    from imgfs.snapshots import open_snapshots

    async def main():
        async with open_snapshots(sys.argv[1]) as snapshots:
            await snapshots.prepare("low")
            await snapshots.commit("low", "low")
            await snapshots.prepare("k", "low")
            async with snapshots.mounted("active/k", sys.argv[2]) as rootfs:
                (rootfs / "file").write_text("written")
                os.sync()
                os.kill(os.getpid(), signal.SIGKILL)

    trio.run(main)
"""


async def test_a_kill_is_recovered_at_the_next_open(tmp_path: Path, target: Path) -> None:
    state = tmp_path / "state"
    done = await trio.run_process([sys.executable, "-c", textwrap.dedent(KILLED), str(state), str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    try:
        (state / "snapshots/.tmp-of-a-removal").mkdir()
        async with open_snapshots(state) as snapshots:
            assert not (state / "snapshots/.tmp-of-a-removal").exists()
            with pytest.raises(Busy):
                await snapshots.commit("k", "done")  # the kernel still has the mount of the killed process
            unmount(str(target))
            await snapshots.commit("k", "done")
            async with snapshots.mounted("done", target) as rootfs:
                assert (rootfs / "file").read_text() == "written"
    finally:
        if mount_at(str(target)):
            unmount(str(target), detach=True)


def test_a_daemon_shows_snapshots_of_the_library_and_locks_the_state(tmp_path: Path) -> None:
    (target := tmp_path / "target").mkdir()
    with workshop(tmp_path) as shop:

        async def look() -> None:
            with pytest.raises(Busy):
                async with open_snapshots(shop.mount.state):
                    pass
            async with open_snapshots(shop.mount.state, read_only=True) as snapshots:
                assert snapshots.stat("upon").parent == shop.base

        async def add() -> None:
            async with open_snapshots(shop.mount.state) as snapshots:
                await make(snapshots, "mine", target)
                await snapshots.prepare("next", shop.base)

        shop.make("upon", shop.base)
        trio.run(look)
        shop.mount.stop()
        trio.run(add)
        shop.mount.start()
        assert (shop.at("mine") / "rootfs/mine").read_text() == "mine"
        assert (shop.active("next") / "rootfs/etc/os").read_text() == "base\n"


async def test_a_lost_database_is_reported_until_imgfs_repair(tmp_path: Path, target: Path) -> None:
    async with open_snapshots(tmp_path) as snapshots:
        await make(snapshots, "kept", target)
    (tmp_path / "imgfs.db").unlink()
    for opening in (open_snapshots, open_store):
        for read_only in (False, True):
            with pytest.raises(StorageFailed, match="imgfs repair"):
                async with opening(tmp_path, read_only=read_only):
                    pass
    assert not (tmp_path / "imgfs.db").exists()
    await trio.run_process([*IMGFS, "repair", "--state", str(tmp_path)], capture_stdout=True)
    async with open_snapshots(tmp_path) as snapshots:
        assert [info.id for info in snapshots.walk()] == ["kept"]
        async with snapshots.mounted("kept", target) as rootfs:
            assert (rootfs / "kept").read_text() == "kept"


def test_without_root_mounting_is_not_permitted() -> None:
    code = """
        import os, sys, trio
        from imgfs.errors import NotPermitted
        from imgfs.snapshots import open_snapshots

        async def main():
            async with open_snapshots(sys.argv[1]) as snapshots:
                await snapshots.prepare("k")
                try:
                    async with snapshots.mounted("active/k", sys.argv[1]):
                        print("mounted")
                except NotPermitted:
                    print("refused")
                await snapshots.commit("k", "done")
                print([info.id for info in snapshots.walk()])

        os.setuid(65534)
        trio.run(main)
    """
    with tempfile.TemporaryDirectory() as state:
        os.chown(state, 65534, 65534)
        command = [sys.executable, "-c", textwrap.dedent(code), state]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["refused", "['done']"], "")
