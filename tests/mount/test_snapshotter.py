"""What any snapshotter owes container engines: the semantics of containerd's snapshots.Snapshotter.

Prepare, commit, view, remove and walk, and how a filesystem made of layers has to behave (overlay, and the order of
commits): each is done here by plain file operations.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.preparing import Workshop, children, kind, workshop
from tests.mount.scene import refused, succeed
from tests.support.trees import compare_trees, directory_mtimes, snapshot_tree

DEPTH = 128


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("snapshotter")) as made:
        yield made


def fill(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_basic(shop: Workshop) -> None:
    """Changes on changes: what is committed is what was there, and goes on from there."""
    first = shop.prepare("basic-1")
    fill(first, foo="foo\n", a__b__c="abc\n", gone="1")
    before = snapshot_tree(first)
    assert compare_trees(before, snapshot_tree(shop.commit("basic-1", "basic-a"))) == []
    second = shop.prepare("basic-2", "basic-a")
    assert compare_trees(before, snapshot_tree(second)) == []
    fill(second, bar="bar\n", a__b__c="changed\n")
    os.unlink(second / "gone")
    before = snapshot_tree(second)
    assert sorted(before) == [b"", b"a", b"a/b", b"a/b/c", b"bar", b"foo"]
    assert compare_trees(before, snapshot_tree(shop.commit("basic-2", "basic-b"))) == []
    third = shop.prepare("basic-3", "basic-b")
    assert compare_trees(before, snapshot_tree(third)) == []
    assert (shop.at("basic-a") / "rootfs/gone").read_text() == "1"
    assert children(shop.at("basic-a")) == ["basic-b"]
    shop.active("basic-3").rmdir()
    shop.at("basic-b").rmdir()
    shop.at("basic-a").rmdir()


def test_stat_of_active_and_committed(shop: Workshop) -> None:
    shop.prepare("stat", shop.base)
    assert (kind(shop.active("stat")), os.readlink(shop.active("stat") / "parent")) == ("active", f"../../{shop.base}")
    shop.commit("stat", "stat-done")
    assert (kind(shop.at("stat-done")), os.readlink(shop.at("stat-done") / "parent")) == (
        "committed",
        f"../{shop.base}",
    )
    assert (kind(shop.at(shop.base)), shop.at(shop.base) in shop.mount.snapshots.iterdir()) == ("committed", True)


def test_transitivity(shop: Workshop) -> None:
    """Parents of parents lead down to the image, whatever was committed or removed meanwhile."""
    shop.make("t1", shop.base)
    shop.make("t2", "t1")
    shop.prepare("t3", "t2")
    down = shop.active("t3") / "parent/parent/parent"
    assert os.path.samefile(down, shop.at(shop.base))
    assert (down / "parent/rootfs/etc/gone").read_text() == "gone\n"
    with refused(errno.ENOENT):
        os.stat(down / "parent/parent")


def test_prepare_and_view_that_have_to_fail(shop: Workshop) -> None:
    shop.make("fails", shop.base)
    shop.prepare("failing", "fails")
    with refused(errno.EEXIST):
        shop.active("failing").mkdir()
    with refused(errno.EINVAL):
        shop.at("failing-view").symlink_to("active/failing")
    with refused(errno.EEXIST):
        shop.commit("failing", "fails")
    shop.at("failing-view").symlink_to("fails")
    with refused(errno.EPERM):
        os.rename(shop.at("failing-view"), shop.active("failing-view"))
    shop.prepare("on-active")
    with refused(errno.EINVAL):
        (shop.active("on-active") / "parent").symlink_to("../../active/failing")


def test_update_of_labels(shop: Workshop) -> None:
    shop.make("updated", shop.base)
    path = shop.at("updated")
    for labels in ({"one": b"1", "two": b"2"}, {"one": b"", "three": b"3"}):
        for name in os.listxattr(path):
            if name.startswith("user.label."):
                os.removexattr(path, name)
        for name, value in labels.items():
            os.setxattr(path, f"user.label.{name}", value)
        told = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.label.")}
        assert told == {f"user.label.{name}": value for name, value in labels.items()}
    assert kind(path) == "committed"
    assert os.readlink(path / "parent") == f"../{shop.base}"


def test_removing_a_view_is_removing_a_view(shop: Workshop) -> None:
    shop.make("viewed", shop.base, file="1")
    shop.at("view").symlink_to("viewed")
    with refused(errno.EROFS):
        (shop.at("view") / "rootfs/new").write_text("x")
    shop.at("view").unlink()
    with refused(errno.ENOENT):
        shop.at("view").unlink()
    assert (shop.at("viewed") / "rootfs/file").read_text() == "1"


def test_intermediate_snapshots_cannot_be_removed(shop: Workshop) -> None:
    shop.make("low", shop.base)
    shop.make("middle", "low")
    shop.prepare("top", "middle")
    for name in ("low", "middle"):
        with refused(errno.EBUSY):
            shop.at(name).rmdir()
    shop.active("top").rmdir()
    with refused(errno.EBUSY):
        shop.at("low").rmdir()
    shop.at("middle").rmdir()
    shop.at("low").rmdir()


def test_what_a_child_deletes_stays_deleted(shop: Workshop) -> None:
    fill(shop.prepare("del-1", shop.base), foo="1", dir__bar="2", dir__keep="3")
    shop.commit("del-1", "del-a")
    root = shop.prepare("del-2", "del-a")
    os.unlink(root / "foo")
    os.unlink(root / "dir/bar")
    succeed("rm", "-r", root / "etc")
    shop.commit("del-2", "del-b")
    fill(shop.prepare("del-3", "del-b"), dir__new="4")
    root = shop.commit("del-3", "del-c")
    assert sorted(os.listdir(root)) == ["data", "dir", "link", "srv"]
    assert sorted(os.listdir(root / "dir")) == ["keep", "new"]
    assert (shop.at("del-a") / "rootfs/foo").read_text() == "1"


def test_a_directory_made_anew_does_not_show_what_was_in_the_old_one(shop: Workshop) -> None:
    fill(shop.prepare("anew-1", shop.base), dir__old="1")
    shop.commit("anew-1", "anew-a")
    root = shop.prepare("anew-2", "anew-a")
    for directory in ("dir", "etc"):
        succeed("rm", "-r", root / directory)
        (root / directory).mkdir()
        (root / directory / "new").write_text("2")
    root = shop.commit("anew-2", "anew-b")
    for directory in ("dir", "etc"):
        assert os.listdir(root / directory) == ["new"]
        assert os.listdir(shop.prepare(f"on-{directory}", "anew-b") / directory) == ["new"]


def test_a_file_moved_from_a_lower_layer(shop: Workshop) -> None:
    fill(shop.prepare("move-1", shop.base), dir__file="1")
    shop.commit("move-1", "move-a")
    root = shop.prepare("move-2", "move-a")
    os.rename(root / "dir/file", root / "moved")
    os.rename(root / "etc/os", root / "dir/os")
    root = shop.commit("move-2", "move-b")
    assert (root / "moved").read_text() == "1"
    assert os.listdir(root / "dir") == ["os"]
    assert os.listdir(root / "etc") == ["gone"]


def test_files_and_directories_are_renamed_within_and_over_layers(shop: Workshop) -> None:
    fill(shop.prepare("ren-1", shop.base), dir__a="1", other__b="2", file="3")
    shop.commit("ren-1", "ren-a")
    root = shop.prepare("ren-2", "ren-a")
    with refused(errno.EXDEV):
        os.rename(root / "dir", root / "dir2")
    succeed("mv", root / "dir", root / "dir2")
    os.rename(root / "file", root / "other/b")
    fill(root, own__c="4")
    os.rename(root / "own", root / "owned")
    root = shop.commit("ren-2", "ren-b")
    assert sorted(os.listdir(root)) == ["data", "dir2", "etc", "link", "other", "owned", "srv"]
    assert [(root / name).read_text() for name in ("dir2/a", "other/b", "owned/c")] == ["1", "3", "4"]


def test_modes_and_owners_of_directories_outlast_commits(shop: Workshop) -> None:
    root = shop.prepare("perm-1", shop.base)
    for name, mode, owner in (("closed", 0o700, 1), ("sticky", 0o1777, 0), ("group", 0o2775, 5)):
        (root / name).mkdir()
        os.chown(root / name, owner, owner)
        os.chmod(root / name, mode)
        (root / name / "file").write_text("x")
    shop.commit("perm-1", "perm-a")
    fill(shop.prepare("perm-2", "perm-a"), closed__more="1", sticky__more="2", group__more="3")
    for root in (shop.commit("perm-2", "perm-b"), shop.prepare("perm-3", "perm-b")):
        for name, mode, owner in (("closed", 0o700, 1), ("sticky", 0o1777, 0), ("group", 0o2775, 5)):
            found = os.stat(root / name)
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, owner, owner)


def test_the_roots_mode_and_owner_come_from_the_parent_and_outlast_commits(shop: Workshop) -> None:
    root = shop.prepare("root-1", shop.base)
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o711
    os.chmod(root, 0o750)
    os.chown(root, 11, 12)
    os.setxattr(root, "user.mark", b"1")
    shop.commit("root-1", "root-a")
    shop.prepare("root-2", "root-a")
    shop.commit("root-2", "root-b")
    for root in (shop.at("root-a") / "rootfs", shop.at("root-b") / "rootfs", shop.prepare("root-3", "root-b")):
        found = os.stat(root)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o750, 11, 12)
        assert os.getxattr(root, "user.mark") == b"1"
    assert stat.S_IMODE(os.stat(shop.prepare("root-4")).st_mode) == 0o755


def test_chown_and_chmod_of_a_parents_files(shop: Workshop) -> None:
    root = shop.prepare("own-1", shop.base)
    before = os.stat(root / "data/big")
    os.chown(root / "data/big", 33, 34)
    os.chmod(root / "data/file", 0o4711)
    os.chown(root / "link", 35, 36, follow_symlinks=False)
    os.chown(root / "data", 37, 38)
    root = shop.commit("own-1", "own-a")
    found = os.stat(root / "data/big")
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (33, 34, before.st_mtime_ns)
    assert (root / "data/big").read_bytes() == bytes(range(256)) * 1024
    assert stat.S_IMODE(os.stat(root / "data/file").st_mode) == 0o4711
    assert os.getxattr(root / "data/file", "user.colour") == b"red"
    assert (os.lstat(root / "link").st_uid, os.stat(root / "data").st_uid) == (35, 37)
    assert os.stat(shop.at(shop.base) / "rootfs/data/big").st_uid == 0


def test_hard_links_within_changes(shop: Workshop) -> None:
    root = shop.prepare("link-1", shop.base)
    fill(root, one="1")
    os.link(root / "one", root / "two")
    os.link(root / "etc/os", root / "three")
    root = shop.commit("link-1", "link-a")
    assert os.path.samefile(root / "one", root / "two")
    assert (root / "three").read_text() == "base\n"
    root = shop.prepare("link-2", "link-a")
    os.unlink(root / "one")
    assert (root / "two").read_text() == "1"


def test_a_chain_of_many(shop: Workshop) -> None:
    """Deeper than any engine stacks them: each level changes, adds and removes a file of those below."""
    parent: str = shop.base
    for level in range(DEPTH):
        root = shop.prepare("level", parent)
        (root / "common").write_text(str(level))
        (root / f"file-{level}").write_text(str(level))
        if level % 10 == 9:
            os.unlink(root / f"file-{level - 1}")
        parent = f"level-{level}"
        shop.commit("level", parent)
    root = shop.prepare("above", parent)
    assert (root / "common").read_text() == str(DEPTH - 1)
    assert (root / "etc/os").read_text() == "base\n"
    kept = {f"file-{level}" for level in range(DEPTH) if level % 10 != 8}
    assert {name for name in os.listdir(root) if name.startswith("file-")} == kept
    (root / "common").write_text("top")
    assert (shop.commit("above", "summit") / "common").read_text() == "top"
    assert (shop.at("level-50") / "rootfs/common").read_text() == "50"


def test_the_list_tells_all_and_each_can_be_asked(shop: Workshop) -> None:
    shop.make("listed", shop.base)
    shop.at("listed-view").symlink_to("listed")
    shop.prepare("listed", "listed")
    with os.scandir(shop.mount.snapshots) as found:
        kinds = {
            one.name: "view" if one.is_symlink() else kind(Path(one.path)) for one in found if one.name != "active"
        }
    assert (kinds["listed"], kinds["listed-view"], kinds[shop.base]) == ("committed", "view", "committed")
    assert set(kinds.values()) == {"committed", "view"}
    with os.scandir(shop.at("active")) as found:
        assert {kind(Path(one.path)) for one in found} == {"active"}


def test_different_trees_do_not_see_one_another(shop: Workshop) -> None:
    one, two = shop.prepare("apart-1", shop.base), shop.prepare("apart-2", shop.base)
    (one / "etc/os").write_text("one")
    os.unlink(two / "etc/os")
    assert (one / "etc/os").read_text() == "one"
    assert (shop.at(shop.base) / "rootfs/etc/os").read_text() == "base\n"
    assert os.listdir(two / "etc") == ["gone"]
    shop.prepare("apart-3", shop.base)
    untouched = compare_trees(
        snapshot_tree(shop.at(shop.base) / "rootfs"),
        snapshot_tree(shop.active("apart-3") / "rootfs"),
        [directory_mtimes("the root's may be that of its preparation", [b""])],
    )
    assert untouched == []
