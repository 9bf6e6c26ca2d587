"""snapshots/active/: mkdir prepares a snapshot, a link sets its parent, rootfs is writable, and rmdir removes it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from tests.mount.preparing import BASE, Workshop, children, kind, mount_table, workshop
from tests.mount.scene import refused, run, succeed


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("prepare")) as made:
        yield made


def test_a_snapshot_without_a_parent_is_empty_and_writable(shop: Workshop) -> None:
    root = shop.prepare("empty")
    assert os.listdir(root) == []
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text("localhost\n")
    assert (root / "etc/hosts").read_text() == "localhost\n"
    assert sorted(os.listdir(shop.active("empty"))) == ["diff", "rootfs"]
    with refused(errno.ENOENT):
        os.readlink(shop.active("empty") / "parent")


def test_prepare_and_commit_with_standard_tools(shop: Workshop) -> None:
    key = shop.active("tools")
    succeed("mkdir", key)
    succeed("ln", "-s", f"../../{shop.base}", key / "parent")
    assert succeed("readlink", key / "parent") == f"../../{shop.base}\n"
    assert succeed("cat", key / "rootfs/etc/os") == "base\n"
    succeed("cp", "-a", key / "rootfs/data", key / "rootfs/copy")
    succeed("rm", "-r", key / "rootfs/etc")
    succeed("mv", key / "rootfs/data/file", key / "rootfs/moved")
    assert succeed("ls", key / "rootfs").split() == ["copy", "data", "link", "moved", "srv"]
    succeed("df", key / "rootfs")
    succeed("rmdir", key)
    assert not key.exists()


def test_a_snapshot_on_an_image_shows_the_image_and_its_root_attributes(shop: Workshop) -> None:
    root = shop.prepare("on-image", shop.base)
    assert (root / "etc/os").read_text() == "base\n"
    found = os.stat(root)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o711, 7, 8)
    assert os.getxattr(root / "data/file", "user.colour") == b"red"
    assert os.path.samefile(root / "data/file", root / "data/twin")
    assert stat.S_IMODE(os.stat(root / "srv").st_mode) == 0o1777


def test_the_parent_may_be_a_committed_snapshot_or_a_view(shop: Workshop) -> None:
    shop.make("stand", shop.base, added="1")
    shop.at("stand-view").symlink_to("stand")
    for key, parent in (("on-committed", "stand"), ("on-view", "stand-view")):
        root = shop.prepare(key, parent)
        assert (root / "added").read_text() == "1"
        assert os.readlink(shop.active(key) / "parent") == "../../stand"
        assert os.path.samefile(shop.active(key) / "parent", shop.at("stand"))


@pytest.mark.parametrize("target", ["{0}", "../{0}", "../../{0}", "{1}/snapshots/{0}", "../../{0}/"])
def test_parent_links_of_any_form_are_read_in_one_form(shop: Workshop, target: str) -> None:
    key = shop.active("written")
    key.mkdir()
    (key / "parent").symlink_to(target.format(shop.base, shop.mount.path))
    assert os.readlink(key / "parent") == f"../../{shop.base}"
    assert (key / "parent/rootfs/etc/os").read_text() == "base\n"
    key.rmdir()


def test_setting_the_parent_a_second_time_needs_ln_sf(shop: Workshop) -> None:
    shop.make("other", None, other="1")
    key = shop.active("twice")
    shop.prepare("twice", shop.base)
    assert run("ln", "-s", "../../other", "-T", key / "parent").returncode == 1
    with refused(errno.EEXIST):
        (key / "parent").symlink_to("../../other")
    assert os.readlink(key / "parent") == f"../../{shop.base}"
    succeed("ln", "-sfn", "../../other", key / "parent")
    assert os.readlink(key / "parent") == "../../other"
    assert children(shop.at("other")) == ["active/twice"]
    assert "active/twice" not in children(shop.at(shop.base))
    assert sorted(os.listdir(key)) == ["diff", "parent", "rootfs"]
    assert os.listdir(key / "rootfs") == ["other"]


def test_the_parent_can_be_removed_until_the_first_use(shop: Workshop) -> None:
    key = shop.active("bare")
    shop.prepare("bare", shop.base)
    succeed("rm", key / "parent")
    with refused(errno.ENOENT):
        os.unlink(key / "parent")
    assert os.listdir(key / "rootfs") == []


def test_the_parent_is_fixed_after_the_first_use(shop: Workshop) -> None:
    shop.make("late", None)
    for key, parent in (("settled", shop.base), ("settled-empty", None)):
        root = shop.prepare(key, parent)
        os.stat(root)
        done = run("ln", "-sfn", "../../late", shop.active(key) / "parent")
        assert done.returncode == 1
        assert "Device or resource busy" in done.stderr
        assert "CuXX" not in " ".join(os.listdir(shop.active(key)))
    with refused(errno.EBUSY):
        (shop.active("settled-empty") / "parent").symlink_to("../../late")
    with refused(errno.EBUSY):
        os.unlink(shop.active("settled") / "parent")
    assert os.readlink(shop.active("settled") / "parent") == f"../../{shop.base}"
    assert children(shop.at("late")) == []


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("../../nobody", errno.ENOENT),
        (f"../../{Digest.of(b'nobody')}", errno.ENOENT),
        ("../nobody", errno.ENOENT),
        ("../../active/nobody", errno.ENOENT),
        ("../../active/busy", errno.EINVAL),
        ("../../active/refusing", errno.EINVAL),
    ],
)
def test_a_refused_parent_changes_nothing(shop: Workshop, target: str, code: int) -> None:
    for key in ("busy", "refusing"):
        shop.active(key).mkdir(exist_ok=True)
    with refused(code):
        (shop.active("refusing") / "parent").symlink_to(target)
    with refused(errno.ENOENT):
        os.readlink(shop.active("refusing") / "parent")
    assert os.listdir(shop.active("refusing") / "rootfs") == []
    shop.active("refusing").rmdir()


def test_a_taken_key_is_refused(shop: Workshop) -> None:
    shop.prepare("taken")
    with refused(errno.EEXIST):
        shop.active("taken").mkdir()


def test_one_of_ten_concurrent_prepares_of_a_key_succeeds(shop: Workshop) -> None:
    def attempt(number: int) -> bool:
        try:
            shop.active("race").mkdir()
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sorted(pool.map(attempt, range(10))) == [False] * 9 + [True]
    (shop.active("race") / "rootfs/works").write_text("1")


def test_ten_concurrent_first_walks_see_one_rootfs(shop: Workshop) -> None:
    root = shop.prepare("crowd", shop.base)

    def write(number: int) -> None:
        (root / f"by-{number}").write_text(str(number))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(write, range(10)))
    assert [(root / f"by-{number}").read_text() for number in range(10)] == [str(number) for number in range(10)]
    mounts = mount_table()
    assert mounts.count(f" {root} ") == 1


NAMES = [
    "a",
    "with space",
    "x" * 255,
    "ü" * 127,
    b"bytes-\xff\xfe".decode(errors="surrogateescape"),
    "-rf",
    "%2F",
    "sha512",
    ".hidden",
    "...",
    "quote\"'\\",
    "*?[",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_bytes(shop: Workshop, name: str) -> None:
    root = shop.prepare(name, shop.base)
    (root / "mark").write_text("1")
    assert name in os.listdir(shop.at("active"))
    os.setxattr(shop.active(name), "user.label.a", b"b")
    shop.commit(name, name)
    assert name in os.listdir(shop.mount.snapshots)
    view = f"v{name[1:]}"
    shop.at(view).symlink_to(name)
    assert os.readlink(shop.at(view)) == name
    assert (shop.at(view) / "rootfs/mark").read_text() == "1"
    (shop.prepare("child", name) / "more").write_text("2")
    assert os.readlink(shop.active("child") / "parent") == f"../../{name}"
    assert (shop.active("child") / "parent/rootfs/mark").read_text() == "1"
    told = os.getxattr(shop.at(name), "user.imgfs.children")
    assert told == os.fsencode("\n".join(sorted(["active/child", view])))
    with refused(errno.EBUSY):
        shop.at(name).rmdir()
    shop.active("child").rmdir()
    shop.at(view).unlink()
    shop.at(name).rmdir()
    assert name not in os.listdir(shop.mount.snapshots)


@pytest.mark.parametrize(("name", "code"), [("x" * 256, errno.EINVAL), ("a\nb", errno.EINVAL)])
def test_malformed_names_are_refused(shop: Workshop, name: str, code: int) -> None:
    with refused(code):
        shop.active(name).mkdir()


CLUTTER: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: (path / "new").write_text("x"),
    "a directory": lambda path: (path / "new").mkdir(),
    "a fifo": lambda path: os.mkfifo(path / "new"),
    "a hard link": lambda path: os.link(path / "parent", path / "new", follow_symlinks=False),
    "rootfs away": lambda path: os.rename(path / "diff", path / "new"),
    "a mode": lambda path: os.chmod(path, 0o700),
    "an owner": lambda path: os.chown(path, 1, 1),
    "a fact": lambda path: os.setxattr(path, "user.imgfs.kind", b"committed"),
    "an xattr of no kind": lambda path: os.setxattr(path, "user.colour", b"red"),
}


@pytest.mark.parametrize("what", CLUTTER)
def test_no_file_can_be_made_beside_rootfs(shop: Workshop, what: str) -> None:
    for key in ("tidy", "tidy-active"):
        shutil.rmtree(shop.at(key), ignore_errors=True)
    if not shop.at("tidy").exists():
        shop.make("tidy", shop.base)
    if not shop.active("tidy-active").exists():
        shop.prepare("tidy-active", shop.base)
    for path in (shop.at("tidy"), shop.active("tidy-active")):
        with refused(errno.EPERM):
            CLUTTER[what](path)


def test_in_active_only_directories_can_be_made(shop: Workshop) -> None:
    for change in ("a file", "a fifo"):
        with refused(errno.EPERM):
            CLUTTER[change](shop.at("active"))
    with refused(errno.EPERM):
        (shop.at("active") / "link").symlink_to(shop.base)
    with refused(errno.EPERM):
        shop.at("active").rmdir()
    with refused(errno.EPERM):
        shop.at("made-by-mkdir").mkdir()


def test_attributes_of_an_active_snapshot(shop: Workshop) -> None:
    root = shop.prepare("facts", shop.base)
    key = shop.active("facts")
    assert kind(key) == "active"
    assert children(key) == []
    assert {"user.imgfs.children", "user.imgfs.kind", "user.imgfs.usage"} <= set(os.listxattr(key))
    before = int(os.getxattr(key, "user.imgfs.usage"))
    (root / "much").write_bytes(os.urandom(1 << 20))
    after = int(os.getxattr(key, "user.imgfs.usage"))
    assert after - before >= 1 << 20
    assert after == int(succeed("du", "-s", "--block-size=1", key / "diff").split()[0])
    assert f'user.imgfs.usage="{after}"' in succeed("getfattr", "-d", "--absolute-names", key)


def test_labels(shop: Workshop) -> None:
    shop.prepare("labelled", shop.base)
    key = shop.active("labelled")
    succeed("setfattr", "-n", "user.label.containerd.io/snapshot.ref", "-v", "x", key)
    os.setxattr(key, "user.label.gone", b"1")
    os.setxattr(key, "user.label.bytes", b"\0\xff")
    os.removexattr(key, "user.label.gone")
    with refused(errno.ENODATA):
        os.getxattr(key, "user.label.gone")
    with refused(errno.EINVAL):
        os.setxattr(key, "user.label.huge", bytes(5000))
    shop.commit("labelled", "kept")
    labels = {name: os.getxattr(shop.at("kept"), name) for name in os.listxattr(shop.at("kept")) if "label" in name}
    assert labels == {"user.label.containerd.io/snapshot.ref": b"x", "user.label.bytes": b"\0\xff"}
    os.setxattr(shop.at("kept"), "user.label.more", b"2")
    shop.at("kept-view").symlink_to("kept")
    assert os.getxattr(shop.at("kept-view"), "user.label.more") == b"2"
    shop.prepare("labelled")
    assert not [name for name in os.listxattr(key) if "label" in name]


def test_diff_shows_the_changes_and_is_read_only(shop: Workshop) -> None:
    root = shop.prepare("changed", shop.base)
    diff = shop.active("changed") / "diff"
    assert os.listdir(diff) == []
    (root / "etc/os").write_text("changed\n")
    os.unlink(root / "etc/gone")
    assert os.listdir(diff) == ["etc"]
    assert (diff / "etc/os").read_text() == "changed\n"
    assert stat.S_ISCHR(os.stat(diff / "etc/gone").st_mode)
    for change in (lambda: (diff / "new").write_text("x"), lambda: os.unlink(diff / "etc/os")):
        with refused(errno.EROFS):
            change()


def test_a_removed_snapshot_is_absent_and_its_space_is_free(shop: Workshop) -> None:
    before = set((shop.mount.state / "snapshots").iterdir())
    root = shop.prepare("short", shop.base)
    (root / "file").write_text("x")
    os.listdir(shop.active("short") / "diff")
    succeed("rmdir", shop.active("short"))
    assert set((shop.mount.state / "snapshots").iterdir()) == before
    assert "short" not in os.listdir(shop.at("active"))
    with refused(errno.ENOENT):
        os.rmdir(shop.active("short"))
    assert "/short/" not in mount_table()
    assert os.listdir(shop.prepare("short")) == []


def test_removing_a_working_directory_is_busy(shop: Workshop) -> None:
    root = shop.prepare("stood-in", shop.base)
    with (root / "open").open("w") as file, refused(errno.EBUSY):
        file.write("still here")
        file.flush()
        shop.active("stood-in").rmdir()
    assert (root / "open").read_text() == "still here"
    here = os.open(root, os.O_PATH)
    with refused(errno.EBUSY):
        shop.active("stood-in").rmdir()
    os.close(here)
    shop.active("stood-in").rmdir()


def test_a_first_walk_from_an_o_path_descriptor_is_estale(shop: Workshop) -> None:
    """The descriptor is of the directory beneath the mount. A walk to `rootfs/.` mounts first."""
    for key in ("o-path", "o-path-dot"):
        shop.active(key).mkdir()
        (shop.active(key) / "parent").symlink_to(f"../../{shop.base}")
    beneath = os.open(shop.active("o-path") / "rootfs", os.O_PATH)
    for _ in range(2):
        with refused(errno.ESTALE):
            os.stat("etc/os", dir_fd=beneath)
    os.close(beneath)
    for path in (shop.active("o-path") / "rootfs", f"{shop.active('o-path-dot')}/rootfs/."):
        here = os.open(path, os.O_PATH)
        assert os.stat("etc/os", dir_fd=here).st_size == len("base\n")
        os.close(here)


def test_rm_r_of_a_whole_snapshot_stops_at_its_mounts(shop: Workshop) -> None:
    """rm empties rootfs first, as every tool does. Only rmdir removes the directory itself."""
    shop.prepare("rm", shop.base)
    assert run("rm", "-r", "--one-file-system", shop.active("rm")).returncode == 1
    assert (shop.active("rm") / "rootfs/etc/os").read_text() == "base\n"
    shop.active("rm").rmdir()


def test_a_removed_snapshot_that_is_still_open_is_absent(shop: Workshop) -> None:
    shop.prepare("held")
    here = os.open(shop.active("held"), os.O_RDONLY | os.O_DIRECTORY)
    shop.active("held").rmdir()
    with refused(errno.ENOENT):
        os.stat("rootfs", dir_fd=here)
    os.close(here)


def test_renaming_a_directory_of_the_parent_is_exdev_and_mv_copies(shop: Workshop) -> None:
    root = shop.prepare("renamed", shop.base)
    with refused(errno.EXDEV):
        os.rename(root / "data", root / "moved")
    succeed("mv", root / "data", root / "moved")
    assert (root / "moved/file").read_text() == "file\n"
    assert not (root / "data").exists()
    os.rename(root / "moved", root / "again")
    assert os.getxattr(root / "again/file", "user.colour") == b"red"


def test_an_image_chain_with_a_child_cannot_be_removed(shop: Workshop) -> None:
    assert "active/on-it" not in children(shop.at(shop.base))
    root = shop.prepare("on-it", shop.base)
    assert "active/on-it" in children(shop.at(shop.base))
    with refused(errno.EPERM):
        shop.at(shop.base).rmdir()
    assert (root / "data/big").read_bytes() == bytes(range(256)) * 1024
    assert len(BASE.layers) == 2
