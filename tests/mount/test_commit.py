"""mv commits an active snapshot under a name, views pin it, and rmdir removes it when it is unused."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgfs.oci.digest import Digest
from tests.mount.preparing import BASE, Workshop, children, kind, mount_table, workshop
from tests.mount.scene import error_of, refused, run, succeed
from tests.mount.test_snapshots import CHANGES


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("commit")) as made:
        yield made


def test_a_commit_keeps_the_content_and_frees_the_key(shop: Workshop) -> None:
    root = shop.prepare("work", shop.base)
    (root / "etc/os").write_text("changed\n")
    os.unlink(root / "etc/gone")
    before = os.readlink(shop.active("work") / "parent")
    succeed("mv", shop.active("work"), shop.at("done"))
    assert before == f"../../{shop.base}"
    assert os.readlink(shop.at("done") / "parent") == f"../{shop.base}"
    assert os.path.samefile(shop.at("done") / "parent", shop.at(shop.base))
    assert (shop.at("done") / "rootfs/etc/os").read_text() == "changed\n"
    assert sorted(os.listdir(shop.at("done") / "rootfs/etc")) == ["os"]
    assert os.listdir(shop.at("done") / "diff") == ["etc"]
    assert kind(shop.at("done")) == "committed"
    assert not shop.active("work").exists()
    assert os.listdir(shop.prepare("work")) == []


def test_a_snapshot_that_was_never_mounted_can_be_committed(shop: Workshop) -> None:
    shop.prepare("untouched", shop.base)
    root = shop.commit("untouched", "same-as-base")
    assert (root / "etc/os").read_text() == "base\n"
    shop.prepare("nothing")
    assert os.listdir(shop.commit("nothing", "void")) == []


def test_a_taken_name_is_refused_and_the_snapshot_stays_usable(shop: Workshop) -> None:
    shop.make("taken", shop.base)
    shop.at("taken-view").symlink_to("taken")
    root = shop.prepare("second", shop.base)
    (root / "kept").write_text("1")
    with refused(errno.EEXIST):
        os.rename(shop.active("second"), shop.at("taken"))
    with refused(errno.ENOTDIR):  # from the kernel: a directory never replaces a link
        os.rename(shop.active("second"), shop.at("taken-view"))
    assert run("mv", "-T", "-n", shop.active("second"), shop.at("taken")).returncode in (0, 1)
    assert run("mv", "-T", shop.active("second"), shop.at("taken")).returncode == 1
    assert (root / "kept").read_text() == "1"
    assert kind(shop.at("taken")) == "committed"


def test_mv_into_a_committed_directory_is_refused(shop: Workshop) -> None:
    """If X is a directory, mv(1) turns `mv K snapshots/X` into `snapshots/X/K`."""
    shop.make("a-directory")
    shop.prepare("into")
    done = run("mv", shop.active("into"), shop.at("a-directory"))
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    assert shop.active("into").exists()


@pytest.mark.parametrize(
    "name", ["a\tb", "sha256:12", f"sha512:{'0' * 128}", Digest.of(b"x"), f"{Digest.of(b'x')}@linux-amd64", "x" * 256]
)
def test_a_malformed_target_of_mv_is_not_permitted(shop: Workshop, name: str) -> None:
    if not shop.active("malformed").exists():
        shop.prepare("malformed")
    with refused(errno.EPERM):
        os.rename(shop.active("malformed"), shop.at(name))
    assert "subdirectory of itself" not in run("mv", "-T", shop.active("malformed"), shop.at(name)).stderr
    assert shop.active("malformed").exists()


def test_an_active_snapshot_cannot_be_moved_elsewhere(shop: Workshop) -> None:
    shop.prepare("rooted", shop.base)
    places = (shop.active("renamed"), shop.mount.path / "x", shop.mount.path / "images/x", shop.mount.content / "x")
    for place in (*places, shop.mount.content / Digest.of(b"x"), shop.active("rooted") / "rootfs2"):
        assert run("mv", "-T", shop.active("rooted"), place).returncode == 1
    with refused(errno.ENOTEMPTY):
        os.rename(shop.active("rooted"), shop.at("active"))
    with refused(errno.EXDEV):
        os.rename(shop.active("rooted"), "/tmp/rooted")
    assert (shop.active("rooted") / "rootfs/etc/os").read_text() == "base\n"
    assert (shop.active("rooted") / "parent/rootfs/etc/os").read_text() == "base\n"


def test_committed_snapshots_keep_their_names(shop: Workshop) -> None:
    shop.make("named", shop.base)
    shop.make("named-too", shop.base)
    for place in ("named-anew", "active/named"):
        with refused(errno.EPERM):
            os.rename(shop.at("named"), shop.at(place))
    with refused(errno.EPERM):
        os.rename(shop.at(shop.base), shop.at("base"))
    with refused(errno.EPERM):
        os.rename(shop.at("active"), shop.at("inactive"))
    link = shop.at(f"{BASE.digest}@linux-amd64")
    for change in (lambda: os.rename(link, shop.at("link")), lambda: os.unlink(link)):
        with refused(errno.EPERM):
            change()
    with refused(errno.ENOENT):
        os.rename(shop.active("nobody"), shop.at("somebody"))
    assert sorted({"named", "named-too"} & set(os.listdir(shop.mount.snapshots))) == ["named", "named-too"]


@pytest.mark.parametrize("use", ["cwd", "open file", "open file for reading", "mapped", "diff"])
def test_a_snapshot_in_use_is_busy_with_a_reason(shop: Workshop, use: str) -> None:
    key, name = f"used-{use}", f"free-{use}"
    root = shop.prepare(key, shop.base)
    (root / "file").write_text("x")
    script = {
        "cwd": "cd rootfs; echo; read x",
        "open file": "exec 3>>rootfs/file; echo; read x",
        "open file for reading": "exec 3<rootfs/etc/os; echo; read x",
        "mapped": "cp /bin/sh rootfs/sh; exec rootfs/sh -c 'echo; read x'",
        "diff": "cd diff; echo; read x",
    }[use]
    with subprocess.Popen(
        ["sh", "-c", script], cwd=shop.active(key), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        for change in (lambda: shop.commit(key, name), lambda: shop.active(key).rmdir()):
            with refused(errno.EBUSY):
                change()
        done = run("mv", "-T", shop.active(key), shop.at(name))
        assert "Device or resource busy" in done.stderr
        assert "used" in error_of(shop.active(key)) or "busy" in error_of(shop.active(key)).lower()
        user.communicate(b"\n")
    assert (shop.commit(key, name) / "file").read_text() == "x"
    assert error_of(shop.at(name)) == ""


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_committed_rootfs_is_refused_as_read_only(shop: Workshop, change: str) -> None:
    if not shop.at("immutable").exists():
        root = shop.prepare("to-be-immutable", shop.base)
        (root / "mark").write_text("1")
        (root / "0").mkdir()
        (root / "0/file").write_text("2")
        os.symlink("file", root / "0/link")
        os.setxattr(root / "mark", "user.x", b"0")
        shop.commit("to-be-immutable", "immutable")
        shop.at("immutable-view").symlink_to("immutable")
    for id in ("immutable", "immutable-view"):
        with refused(errno.EROFS):
            CHANGES[change](shop.at(id) / "rootfs")
        assert (shop.at(id) / "rootfs/mark").read_text() == "1"
    assert not os.access(shop.at("immutable") / "rootfs/mark", os.W_OK)


def test_a_view_pins_its_target(shop: Workshop) -> None:
    shop.make("pinned", shop.base, mine="1")
    succeed("ln", "-s", "pinned", shop.at("pin"))
    assert succeed("readlink", shop.at("pin")) == "pinned\n"
    assert (shop.at("pin") / "rootfs/mine").read_text() == "1"
    assert children(shop.at("pinned")) == ["pin"]
    with refused(errno.EBUSY):
        shop.at("pinned").rmdir()
    assert "pin" in error_of(shop.at("pinned"))
    with refused(errno.ENOTDIR):
        shop.at("pin").rmdir()
    succeed("rm", shop.at("pin"))
    assert children(shop.at("pinned")) == []
    shop.at("pinned").rmdir()


def test_a_view_of_a_view_pins_the_target_itself(shop: Workshop) -> None:
    shop.make("deep")
    shop.at("deep-1").symlink_to("deep")
    shop.at("deep-2").symlink_to("deep-1")
    assert os.readlink(shop.at("deep-2")) == "deep"
    shop.at("deep-1").unlink()
    with refused(errno.EBUSY):
        shop.at("deep").rmdir()
    shop.at("deep-2").unlink()
    shop.at("deep").rmdir()


def test_a_view_of_an_image_chain(shop: Workshop) -> None:
    shop.at("image-view").symlink_to(shop.base)
    assert (shop.at("image-view") / "rootfs/etc/os").read_text() == "base\n"
    assert "image-view" in children(shop.at(shop.base))
    shop.at("image-view").unlink()


@pytest.mark.parametrize(
    ("name", "target", "code"),
    [
        ("view", "nobody", errno.ENOENT),
        ("view", Digest.of(b"nobody"), errno.ENOENT),
        ("view", "active/standing", errno.EINVAL),
        ("taken-by-commit", "taken-by-commit", errno.EEXIST),
        ("a\tb", "taken-by-commit", errno.EINVAL),
        (Digest.of(b"y"), "taken-by-commit", errno.EINVAL),
    ],
)
def test_views_that_are_refused(shop: Workshop, name: str, target: str, code: int) -> None:
    if not shop.at("taken-by-commit").exists():
        shop.make("taken-by-commit")
        shop.prepare("standing")
    with refused(code):
        shop.at(name).symlink_to(target)
    assert "view" not in os.listdir(shop.mount.snapshots)


def test_a_view_is_replaced_and_renamed_like_any_link(shop: Workshop) -> None:
    for name in ("one", "two"):
        shop.make(name, None, file=name)
    succeed("ln", "-s", "one", shop.at("current"))
    assert (shop.at("current") / "rootfs/file").read_text() == "one"
    succeed("ln", "-sfn", "two", shop.at("current"))
    assert (shop.at("current") / "rootfs/file").read_text() == "two"
    assert (children(shop.at("one")), children(shop.at("two"))) == ([], ["current"])
    succeed("mv", shop.at("current"), shop.at("latest"))
    assert os.readlink(shop.at("latest")) == "two"
    with refused(errno.EISDIR):
        os.rename(shop.at("latest"), shop.at("one"))
    with refused(errno.EPERM):
        os.rename(shop.at("latest"), shop.active("latest"))
    shop.at("latest").unlink()
    assert [name for name in os.listdir(shop.mount.snapshots) if name.startswith("Cu")] == []


def test_a_link_into_a_committed_directory_is_refused(shop: Workshop) -> None:
    shop.make("closed", shop.base)
    for name in ("parent", "other", "CuXXXXXX"):
        with refused(errno.EEXIST if name == "parent" else errno.EPERM):
            (shop.at("closed") / name).symlink_to(shop.base)
    with refused(errno.EPERM):
        (shop.at("closed") / "parent").unlink()


def test_removal_waits_for_children(shop: Workshop) -> None:
    shop.make("grandparent", shop.base)
    shop.make("parent", "grandparent")
    shop.prepare("child", "parent")
    assert children(shop.at("grandparent")) == ["parent"]
    assert children(shop.at("parent")) == ["active/child"]
    for name in ("grandparent", "parent"):
        done = run("rmdir", shop.at(name))
        assert "Device or resource busy" in done.stderr
    shop.active("child").rmdir()
    for name in ("parent", "grandparent"):
        succeed("rmdir", shop.at(name))
        assert not shop.at(name).exists()


def test_removing_a_working_directory_is_busy(shop: Workshop) -> None:
    root = shop.make("stood-in", shop.base, file="1")
    with (root / "file").open() as file:
        with refused(errno.EBUSY):
            shop.at("stood-in").rmdir()
        assert file.read() == "1"
    shop.at("stood-in").rmdir()


def test_one_of_ten_concurrent_commits_to_a_name_succeeds(shop: Workshop) -> None:
    for number in range(10):
        (shop.prepare(f"c{number}", shop.base) / "who").write_text(str(number))

    def attempt(number: int) -> str | None:
        try:
            return (shop.commit(f"c{number}", "winner") / "who").read_text()
        except OSError as error:
            return None if error.errno == errno.EEXIST else str(error)

    with ThreadPoolExecutor(10) as pool:
        won = [who for who in pool.map(attempt, range(10)) if who is not None]
    assert len(won) == 1
    assert (shop.at("winner") / "rootfs/who").read_text() == won[0]
    left = {name for name in os.listdir(shop.at("active")) if name in {f"c{number}" for number in range(10)}}
    assert left == {f"c{number}" for number in range(10)} - {f"c{won[0]}"}


def test_commits_and_walkers_at_the_same_time(shop: Workshop) -> None:
    """A walk to a rootfs during its commit succeeds, or fails with EBUSY or ENOENT."""
    for number in range(8):
        (shop.prepare(f"w{number}", shop.base) / "who").write_text(str(number))

    def walk(number: int) -> str | None:
        for place in (shop.active(f"w{number}"), shop.at(f"walked{number}")):
            try:
                return (place / "rootfs/who").read_text()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ESTALE):
                    raise
        return None

    def end(number: int) -> bool:
        try:
            shop.commit(f"w{number}", f"walked{number}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        walks = [pool.submit(walk, number) for number in range(8) for _ in range(3)]
        ends = [pool.submit(end, number) for number in range(8)]
        assert {(done.result(), index // 3) for index, done in enumerate(walks)} <= {
            *((str(number), number) for number in range(8)),
            *((None, number) for number in range(8)),
        }
        done = [one.result() for one in ends]
    for number in range(8):
        place = shop.at(f"walked{number}") if done[number] else shop.active(f"w{number}")
        assert (place / "rootfs/who").read_text() == str(number)
    told = mount_table()
    for number in range(8):
        assert told.count(f"/active/w{number}/rootfs ") == (not done[number])


def test_a_parent_is_removed_or_pinned_and_never_both(shop: Workshop) -> None:
    shop.make("wanted", shop.base)
    for number in range(8):
        shop.prepare(f"p{number}")

    def pin(number: int) -> bool:
        try:
            (shop.active(f"p{number}") / "parent").symlink_to("../../wanted")
        except FileNotFoundError:
            return False
        return True

    def remove() -> bool:
        return run("rmdir", shop.at("wanted")).returncode == 0

    with ThreadPoolExecutor(9) as pool:
        removed = pool.submit(remove)
        pinned = [number for number, is_pinned in enumerate(pool.map(pin, range(8))) if is_pinned]
        assert removed.result() == (pinned == [])
    assert shop.at("wanted").exists() == (pinned != [])
    assert [number for number in range(8) if (shop.active(f"p{number}") / "parent").is_symlink()] == pinned


def test_usage_is_kept_after_commit(shop: Workshop) -> None:
    root = shop.prepare("sized", shop.base)
    (root / "much").write_bytes(os.urandom(300_000))
    shop.commit("sized", "measured")
    used = int(os.getxattr(shop.at("measured"), "user.imgfs.usage"))
    assert used == int(succeed("du", "-s", "--block-size=1", shop.at("measured") / "diff").split()[0])
    assert used >= 300_000


def test_walking_the_whole_tree_finds_everything_and_changes_nothing(shop: Workshop) -> None:
    shop.make("walked", shop.base)
    before = sorted(os.listdir(shop.mount.snapshots))
    succeed("ls", "-lR", shop.mount.snapshots)
    succeed("find", shop.mount.snapshots, "-maxdepth", "3")
    succeed("du", "-s", shop.mount.snapshots)
    assert sorted(os.listdir(shop.mount.snapshots)) == before
