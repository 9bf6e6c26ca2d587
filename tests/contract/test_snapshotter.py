"""What any snapshotter owes container engines: the semantics of containerd's snapshots.Snapshotter.

Prepare, commit, view, remove and walk, and how a filesystem made of layers has to behave (overlay, and the order of
commits): each by both doors, calls of the library and plain file operations.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.refusal import refused
from tests.contract.snapshot_doors import DOORS, SnapshotDoor, Told
from tests.mount.scene import succeed
from tests.support.trees import compare_trees, directory_mtimes, snapshot_tree

DEPTH = 128


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotDoor]:
    with DOORS[request.param](tmp_path_factory.mktemp("snapshotter")) as made:
        yield made


def prepare(door: SnapshotDoor, key: str, parent: str | None = None) -> Path:
    """Prepare an active snapshot; return its rootfs."""
    door.prepare(key, parent)
    return door.rootfs(f"active/{key}")


def commit(door: SnapshotDoor, key: str, name: str) -> Path:
    """Commit; return the committed rootfs."""
    door.commit(key, name)
    return door.rootfs(name)


def make(door: SnapshotDoor, name: str, parent: str | None = None, **files: str) -> None:
    """Commit a snapshot with these files at its top."""
    fill(prepare(door, f"for-{name}", parent), **files)
    door.commit(f"for-{name}", name)


def fill(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_basic(door: SnapshotDoor) -> None:
    """Stacked changes: a commit keeps the files, and the next snapshot continues from them."""
    first = prepare(door, "basic-1")
    fill(first, foo="foo\n", a__b__c="abc\n", gone="1")
    before = snapshot_tree(first)
    assert compare_trees(before, snapshot_tree(commit(door, "basic-1", "basic-a"))) == []
    second = prepare(door, "basic-2", "basic-a")
    assert compare_trees(before, snapshot_tree(second)) == []
    fill(second, bar="bar\n", a__b__c="changed\n")
    os.unlink(second / "gone")
    before = snapshot_tree(second)
    assert sorted(before) == [b"", b"a", b"a/b", b"a/b/c", b"bar", b"foo"]
    assert compare_trees(before, snapshot_tree(commit(door, "basic-2", "basic-b"))) == []
    third = prepare(door, "basic-3", "basic-b")
    assert compare_trees(before, snapshot_tree(third)) == []
    assert (door.rootfs("basic-a") / "gone").read_text() == "1"
    assert door.children("basic-a") == ["basic-b"]
    door.remove("active/basic-3")
    door.remove("basic-b")
    door.remove("basic-a")


def test_stat_of_active_and_committed(door: SnapshotDoor) -> None:
    prepare(door, "stat", door.base)
    assert door.stat("active/stat") == Told("active", door.base)
    door.commit("stat", "stat-done")
    assert door.stat("stat-done") == Told("committed", door.base)
    with refused(errno.ENOENT):
        door.stat("active/stat")
    door.prepare("stat-alone")
    assert door.stat("active/stat-alone") == Told("active", None)
    assert door.stat(door.base).kind == "committed"


def test_transitivity(door: SnapshotDoor) -> None:
    """The chain of parents leads to the base, whatever was committed or removed meanwhile."""
    make(door, "t1", door.base)
    make(door, "t2", "t1")
    door.prepare("t3", "t2")
    down: list[str] = []
    here = door.stat("active/t3").parent
    while here is not None:
        down.append(here)
        here = door.stat(here).parent
    assert down[:3] == ["t2", "t1", door.base]
    assert len(down) == 4
    assert (door.rootfs(down[3]) / "etc/gone").read_text() == "gone\n"
    assert not (door.rootfs(down[3]) / "data").exists()


def test_prepares_and_views_that_are_refused(door: SnapshotDoor) -> None:
    make(door, "fails", door.base)
    prepare(door, "failing", "fails")
    with refused(errno.EEXIST):
        door.prepare("failing")
    with refused(errno.EINVAL):
        door.view("failing-view", "active/failing")
    with refused(errno.EEXIST):
        door.commit("failing", "fails")
    door.view("failing-view", "fails")
    with refused(errno.EEXIST):
        door.view("failing-view", "fails")
    with refused(errno.EEXIST, errno.ENOTDIR):  # the kernel returns the second one: a view is a link there
        door.commit("failing", "failing-view")
    with refused(errno.EINVAL):
        door.prepare("on-active", "active/failing")
    with refused(errno.ENOENT):
        door.prepare("on-nothing", "no-such-snapshot")
    with refused(errno.ENOENT):
        door.view("of-nothing", "no-such-snapshot")
    with refused(errno.ENOENT):
        door.commit("no-such-key", "name")
    with refused(errno.ENOENT):
        door.remove("no-such-snapshot")


def test_a_view_shows_and_pins_its_target(door: SnapshotDoor) -> None:
    make(door, "pinned", door.base, file="1")
    door.view("pinning", "pinned")
    assert door.stat("pinning") == Told("view", "pinned")
    root = prepare(door, "on-view", "pinning")
    assert ((root / "file").read_text(), door.stat("active/on-view").parent) == ("1", "pinned")
    assert door.children("pinned") == ["active/on-view", "pinning"]
    door.remove("active/on-view")
    with refused(errno.EBUSY):
        door.remove("pinned")
    door.remove("pinning")
    door.remove("pinned")


def test_names_and_keys_are_free_again(door: SnapshotDoor) -> None:
    make(door, "free")
    door.prepare("again", "free")
    door.remove("active/again")
    door.view("again", "free")
    door.remove("again")
    door.prepare("again")
    door.remove("free")
    door.commit("again", "free")
    door.remove("free")


def test_update_of_labels(door: SnapshotDoor) -> None:
    make(door, "updated", door.base)
    prepare(door, "updating", "updated")
    for id, kind, parent in (("updated", "committed", door.base), ("active/updating", "active", "updated")):
        door.update(id, {"one": b"1", "two": b"2", "containerd.io/gc.root": b"now"})
        door.update(id, {"one": b"", "two": None, "three": b"\xff"})
        assert door.labels(id) == {"one": b"", "three": b"\xff", "containerd.io/gc.root": b"now"}
        with refused(errno.EINVAL):
            door.update(id, {"four": b"x" * 4096})
        assert door.stat(id) == Told(kind, parent)
    door.commit("updating", "labelled")
    assert door.labels("labelled") == {"one": b"", "three": b"\xff", "containerd.io/gc.root": b"now"}
    with refused(errno.ENOENT):
        door.update("no-such-snapshot", {"one": b"1"})


def test_usage_is_of_its_own_changes(door: SnapshotDoor) -> None:
    root = prepare(door, "used", door.base)
    before = door.usage("active/used")
    (root / "much").write_bytes(bytes(range(256)) * 4096)
    os.sync()
    assert 1 << 20 <= door.usage("active/used") - before < 2 << 20
    door.commit("used", "used-done")
    assert door.usage("used-done") >= 1 << 20
    door.prepare("uses-nothing", "used-done")
    assert door.usage("active/uses-nothing") < 1 << 16


def test_removing_a_view_is_removing_a_view(door: SnapshotDoor) -> None:
    make(door, "viewed", door.base, file="1")
    door.view("view", "viewed")
    with refused(errno.EROFS):
        (door.rootfs("view") / "new").write_text("x")
    door.remove("view")
    with refused(errno.ENOENT):
        door.remove("view")
    assert (door.rootfs("viewed") / "file").read_text() == "1"


def test_intermediate_snapshots_cannot_be_removed(door: SnapshotDoor) -> None:
    make(door, "low", door.base)
    make(door, "middle", "low")
    prepare(door, "top", "middle")
    for name in ("low", "middle"):
        with refused(errno.EBUSY):
            door.remove(name)
    door.remove("active/top")
    with refused(errno.EBUSY):
        door.remove("low")
    door.remove("middle")
    door.remove("low")


def test_what_a_child_deletes_stays_deleted(door: SnapshotDoor) -> None:
    fill(prepare(door, "del-1", door.base), foo="1", dir__bar="2", dir__keep="3")
    commit(door, "del-1", "del-a")
    root = prepare(door, "del-2", "del-a")
    os.unlink(root / "foo")
    os.unlink(root / "dir/bar")
    succeed("rm", "-r", root / "etc")
    commit(door, "del-2", "del-b")
    fill(prepare(door, "del-3", "del-b"), dir__new="4")
    root = commit(door, "del-3", "del-c")
    assert sorted(os.listdir(root)) == ["data", "dir", "link", "srv"]
    assert sorted(os.listdir(root / "dir")) == ["keep", "new"]
    assert (door.rootfs("del-a") / "foo").read_text() == "1"


def test_a_directory_made_anew_does_not_show_what_was_in_the_old_one(door: SnapshotDoor) -> None:
    fill(prepare(door, "anew-1", door.base), dir__old="1")
    commit(door, "anew-1", "anew-a")
    root = prepare(door, "anew-2", "anew-a")
    for directory in ("dir", "etc"):
        succeed("rm", "-r", root / directory)
        (root / directory).mkdir()
        (root / directory / "new").write_text("2")
    root = commit(door, "anew-2", "anew-b")
    for directory in ("dir", "etc"):
        assert os.listdir(root / directory) == ["new"]
        assert os.listdir(prepare(door, f"on-{directory}", "anew-b") / directory) == ["new"]


def test_a_file_moved_from_a_lower_layer(door: SnapshotDoor) -> None:
    fill(prepare(door, "move-1", door.base), dir__file="1")
    commit(door, "move-1", "move-a")
    root = prepare(door, "move-2", "move-a")
    os.rename(root / "dir/file", root / "moved")
    os.rename(root / "etc/os", root / "dir/os")
    root = commit(door, "move-2", "move-b")
    assert (root / "moved").read_text() == "1"
    assert os.listdir(root / "dir") == ["os"]
    assert os.listdir(root / "etc") == ["gone"]


def test_files_and_directories_are_renamed_within_and_over_layers(door: SnapshotDoor) -> None:
    fill(prepare(door, "ren-1", door.base), dir__a="1", other__b="2", file="3")
    commit(door, "ren-1", "ren-a")
    root = prepare(door, "ren-2", "ren-a")
    with refused(errno.EXDEV):
        os.rename(root / "dir", root / "dir2")
    succeed("mv", root / "dir", root / "dir2")
    os.rename(root / "file", root / "other/b")
    fill(root, own__c="4")
    os.rename(root / "own", root / "owned")
    root = commit(door, "ren-2", "ren-b")
    assert sorted(os.listdir(root)) == ["data", "dir2", "etc", "link", "other", "owned", "srv"]
    assert [(root / name).read_text() for name in ("dir2/a", "other/b", "owned/c")] == ["1", "3", "4"]


def test_modes_and_owners_of_directories_outlast_commits(door: SnapshotDoor) -> None:
    root = prepare(door, "perm-1", door.base)
    for name, mode, owner in (("closed", 0o700, 1), ("sticky", 0o1777, 0), ("group", 0o2775, 5)):
        (root / name).mkdir()
        os.chown(root / name, owner, owner)
        os.chmod(root / name, mode)
        (root / name / "file").write_text("x")
    commit(door, "perm-1", "perm-a")
    fill(prepare(door, "perm-2", "perm-a"), closed__more="1", sticky__more="2", group__more="3")
    for root in (commit(door, "perm-2", "perm-b"), prepare(door, "perm-3", "perm-b")):
        for name, mode, owner in (("closed", 0o700, 1), ("sticky", 0o1777, 0), ("group", 0o2775, 5)):
            found = os.stat(root / name)
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, owner, owner)


def test_the_roots_mode_and_owner_come_from_the_parent_and_outlast_commits(door: SnapshotDoor) -> None:
    root = prepare(door, "root-1", door.base)
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o711
    os.chmod(root, 0o750)
    os.chown(root, 11, 12)
    os.setxattr(root, "user.mark", b"1")
    commit(door, "root-1", "root-a")
    prepare(door, "root-2", "root-a")
    commit(door, "root-2", "root-b")
    for root in (door.rootfs("root-a"), door.rootfs("root-b"), prepare(door, "root-3", "root-b")):
        found = os.stat(root)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o750, 11, 12)
        assert os.getxattr(root, "user.mark") == b"1"
    assert stat.S_IMODE(os.stat(prepare(door, "root-4")).st_mode) == 0o755


def test_chown_and_chmod_of_a_parents_files(door: SnapshotDoor) -> None:
    root = prepare(door, "own-1", door.base)
    before = os.stat(root / "data/big")
    os.chown(root / "data/big", 33, 34)
    os.chmod(root / "data/file", 0o4711)
    os.chown(root / "link", 35, 36, follow_symlinks=False)
    os.chown(root / "data", 37, 38)
    root = commit(door, "own-1", "own-a")
    found = os.stat(root / "data/big")
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (33, 34, before.st_mtime_ns)
    assert (root / "data/big").read_bytes() == bytes(range(256)) * 1024
    assert stat.S_IMODE(os.stat(root / "data/file").st_mode) == 0o4711
    assert os.getxattr(root / "data/file", "user.colour") == b"red"
    assert (os.lstat(root / "link").st_uid, os.stat(root / "data").st_uid) == (35, 37)
    assert os.stat(door.rootfs(door.base) / "data/big").st_uid == 0


def test_hard_links_within_changes(door: SnapshotDoor) -> None:
    root = prepare(door, "link-1", door.base)
    fill(root, one="1")
    os.link(root / "one", root / "two")
    os.link(root / "etc/os", root / "three")
    root = commit(door, "link-1", "link-a")
    assert os.path.samefile(root / "one", root / "two")
    assert (root / "three").read_text() == "base\n"
    root = prepare(door, "link-2", "link-a")
    os.unlink(root / "one")
    assert (root / "two").read_text() == "1"


def test_a_chain_of_many(door: SnapshotDoor) -> None:
    """A chain deeper than engines use: each level changes, adds and removes a file of the levels below."""
    parent: str = door.base
    for level in range(DEPTH):
        root = prepare(door, "level", parent)
        (root / "common").write_text(str(level))
        (root / f"file-{level}").write_text(str(level))
        if level % 10 == 9:
            os.unlink(root / f"file-{level - 1}")
        parent = f"level-{level}"
        door.commit("level", parent)
    root = prepare(door, "above", parent)
    assert (root / "common").read_text() == str(DEPTH - 1)
    assert (root / "etc/os").read_text() == "base\n"
    kept = {f"file-{level}" for level in range(DEPTH) if level % 10 != 8}
    assert {name for name in os.listdir(root) if name.startswith("file-")} == kept
    (root / "common").write_text("top")
    assert (commit(door, "above", "summit") / "common").read_text() == "top"
    assert (door.rootfs("level-50") / "common").read_text() == "50"


def test_the_walk_lists_all_snapshots(door: SnapshotDoor) -> None:
    make(door, "listed", door.base)
    door.view("listed-view", "listed")
    door.prepare("listed", "listed")
    expected = {
        "listed": Told("committed", door.base),
        "listed-view": Told("view", "listed"),
        "active/listed": Told("active", "listed"),
    }
    found = door.walk()
    assert {id: told for id, told in found.items() if id in expected} == expected
    assert {id: door.stat(id) for id in found} == found
    door.restart()
    assert door.walk() == found


def test_different_trees_are_independent(door: SnapshotDoor) -> None:
    one, two = prepare(door, "apart-1", door.base), prepare(door, "apart-2", door.base)
    (one / "etc/os").write_text("one")
    os.unlink(two / "etc/os")
    assert (one / "etc/os").read_text() == "one"
    assert (door.rootfs(door.base) / "etc/os").read_text() == "base\n"
    assert os.listdir(two / "etc") == ["gone"]
    prepare(door, "apart-3", door.base)
    untouched = compare_trees(
        snapshot_tree(door.rootfs(door.base)),
        snapshot_tree(door.rootfs("active/apart-3")),
        [directory_mtimes("the root's may be that of its preparation", [b""])],
    )
    assert untouched == []
