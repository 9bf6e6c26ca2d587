"""A state directory that is or becomes read-only: stored content is served, and changes are EROFS."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.registry import FakeRegistry
from tests.mount.ingesting import blob_of, put
from tests.mount.preparing import Workshop, add_base, digest_of, kind, small_disk, unmount
from tests.mount.scene import CONFIG, Scene, error_of, refused, small, succeed, until
from tests.support.mounted import Mounted
from tests.support.programs import program

SIZE = 64 << 20
DATA = b"a blob of a user\n"


@dataclass(frozen=True)
class World:
    """A mount with an object of each kind, and its state directory on a disk of its own."""

    shop: Workshop
    disk: Path
    name: Path
    blob: Path
    unseen: Path
    """A name that the registry has and that nothing has looked up."""

    @property
    def mount(self) -> Mounted:
        return self.shop.mount

    def restart(self, disk: str) -> None:
        """Unmount imgfs, remount the disk, mount imgfs again."""
        self.mount.stop()
        remount(self.disk, disk)
        self.mount.start()


def remount(disk: Path, how: str) -> None:
    subprocess.run([program("mount"), "-o", f"remount,{how}", disk], check=True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_disk(tmp_path, SIZE) as disk, FakeRegistry() as registry, Mounted(tmp_path) as mount:
        yield populated(Scene(registry, mount), disk)


def populated(scene: Scene, disk: Path) -> World:
    mount = scene.mount
    mount.state = disk / "state"
    mount.state.mkdir(mode=0o700)
    (mount.state / "imgfs.toml").write_text(CONFIG)
    mount.start()
    add_base(scene)
    shop = Workshop(scene)
    name = scene.serve(small("here"), "here")
    (name / "pull").read_bytes()
    assert (name / "rootfs/mark").read_bytes() == b"here/0\n"
    (shop.prepare("used", shop.base) / "mine").write_text("mine\n")
    shop.prepare("fresh", shop.base)
    shop.make("done", shop.base, file="done\n")
    blob = blob_of(mount.content / "ingest/mine", DATA)
    os.setxattr(blob, "user.label.colour", b"red")
    put(mount.content / "ingest/begun", b"12345")
    (mount.path / ".imgfs/leases/kept").mkdir()
    return World(shop, disk, name, blob, scene.serve(small("unseen"), "unseen"))


def assert_served(world: World) -> None:
    """Assert that all stored content is read."""
    shop = world.shop
    with shop.scene.silence():
        assert (world.name / "rootfs/mark").read_bytes() == b"here/0\n"
        assert os.listdir(shop.at(f"{shop.base}/diff"))
        assert (shop.active("used/rootfs") / "mine").read_text() == "mine\n"
        assert (shop.active("used/rootfs") / "data/file").read_text() == "file\n"
        assert (shop.active("used/diff") / "mine").read_text() == "mine\n"
        assert (shop.active("fresh/rootfs") / "data/file").read_text() == "file\n"
        assert (shop.at("done/rootfs") / "file").read_text() == "done\n"
        assert digest_of(shop.at("done") / "layer.tar")
        assert world.blob.read_bytes() == DATA
        assert os.getxattr(world.blob, "user.label.colour") == b"red"
        assert (world.mount.content / "ingest/begun").stat().st_size == 5
        assert os.listdir(world.mount.path / ".imgfs/leases") == ["kept"]
        assert b"complete  yes" in (world.name / "status").read_bytes()
        assert world.mount.run("gc", "--dry-run").returncode == 0
        succeed("ls", "-lR", world.mount.path / "images", world.mount.path / "snapshots", world.mount.content)


def changes(world: World) -> dict[str, Callable[[], object]]:
    """One change of each kind that must be refused."""
    shop, images, content = world.shop, world.shop.scene.images, world.mount.content
    control, ingest = world.mount.path / ".imgfs", world.mount.content / "ingest"
    digest = os.readlink(world.name).rpartition("/")[2]
    return {
        "tag": lambda: os.setxattr(images, "user.imgfs.tag", f"mine {digest}".encode()),
        "name": lambda: os.symlink(digest, images / "word"),
        "rename": lambda: world.name.rename(images / "word"),
        "unname": lambda: world.name.unlink(),
        "touch": lambda: os.utime(world.name, follow_symlinks=False),
        "resolve": lambda: os.stat(world.unseen),
        "rm": lambda: world.blob.unlink(),
        "label": lambda: os.setxattr(world.blob, "user.label.colour", b"blue"),
        "unlabel": lambda: os.removexattr(world.blob, "user.label.colour"),
        "label a snapshot": lambda: os.setxattr(shop.at("done"), "user.label.colour", b"blue"),
        "begin": lambda: put(ingest / "new", b"1"),
        "append": lambda: append(ingest / "begun", b"6"),
        "abort": lambda: (ingest / "begun").unlink(),
        "rename a ref": lambda: (ingest / "begun").rename(ingest / "other"),
        "commit a ref": lambda: (ingest / "begun").rename(content / Digest.of(b"12345")),
        "declare": lambda: os.setxattr(ingest / "begun", "user.imgfs.total", b"10"),
        "prepare": lambda: shop.active("new").mkdir(),
        "parent": lambda: (shop.active("fresh") / "parent").unlink(),
        "write": lambda: (shop.active("used/rootfs") / "new").write_text("1"),
        "commit": lambda: shop.commit("used", "finished"),
        "view": lambda: shop.at("seen").symlink_to("done"),
        "remove": lambda: shop.at("done").rmdir(),
        "lease": lambda: (control / "leases/new").mkdir(),
        "unlease": lambda: (control / "leases/kept").rmdir(),
        "gc": lambda: os.setxattr(control, "user.imgfs.gc", b"all"),
    }


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def assert_refused(world: World, but: str = "") -> None:
    """Assert that every change is EROFS."""
    wrong: dict[str, object] = {}
    for what, change in changes(world).items():
        if what == but:
            continue
        try:
            change()
            wrong[what] = "was done"
        except OSError as error:
            if error.errno != errno.EROFS:
                wrong[what] = error
    assert not wrong


def checked(world: World) -> tuple[int, str]:
    """Return the findings of `imgfs check`: exit code and lines."""
    done = world.mount.run("check", "--state", str(world.mount.state))
    return done.returncode, done.stdout


def test_a_read_only_state_directory_is_served_and_refuses_every_change(world: World) -> None:
    world.restart("ro")
    assert_served(world)
    assert_refused(world)
    assert_served(world)
    assert "read-only" in (world.mount.path / ".imgfs/log").read_text()
    assert "make it writable" in error_of(world.blob)
    assert '"read_only": true' in (world.mount.path / ".imgfs/state.json").read_text()
    assert checked(world) == (0, "")
    world.mount.stop()
    assert checked(world) == (0, "")
    world.mount.start()
    world.restart("rw")
    assert_served(world)
    (world.shop.active("fresh/rootfs") / "new").write_text("1")
    append(world.mount.content / "ingest/begun", b"6")
    assert os.stat(world.unseen)


def test_what_a_killed_daemon_has_acknowledged_is_served_from_a_read_only_disk(world: World) -> None:
    images = world.shop.scene.images
    os.setxattr(images, "user.imgfs.tag", f"late {os.readlink(world.name).rpartition('/')[2]}".encode())
    world.mount.kill()
    world.mount.stop()
    remount(world.disk, "ro")
    before = sorted(path.name for path in world.mount.state.iterdir())
    world.mount.start()
    assert os.readlink(images / "late").rpartition("/")[2] == os.readlink(world.name).rpartition("/")[2]
    assert_served(world)
    assert sorted(path.name for path in world.mount.state.iterdir()) == before
    assert_refused(world)


def test_an_empty_read_only_directory_is_an_empty_tree(tmp_path: Path, registry: FakeRegistry) -> None:
    with small_disk(tmp_path, SIZE) as disk, Mounted(tmp_path) as mount:
        mount.state = disk / "state"
        mount.state.mkdir()
        remount(disk, "ro")
        mount.start()
        assert os.listdir(mount.content) == ["ingest"]
        assert (os.listdir(mount.path / "images"), os.listdir(mount.snapshots)) == ([], ["active"])
        small("any").add_to(registry, "any", "1")
        with refused(errno.EROFS):
            os.stat(mount.image(f"{registry.host}/any:1"))
        with refused(errno.EROFS):
            (mount.snapshots / "active/new").mkdir()
        assert os.listdir(mount.state) == []


@contextmanager
def bound_read_only(state: Path, at: Path) -> Generator[Path]:
    at.mkdir()
    subprocess.run([program("mount"), "--bind", state, at], check=True)
    try:
        subprocess.run([program("mount"), "-o", "remount,bind,ro", at], check=True)
        yield at
    finally:
        unmount(at)


def test_a_read_only_bind_is_served_too_and_its_lock_counts(world: World, tmp_path: Path) -> None:
    world.mount.stop()
    state = world.mount.state
    with bound_read_only(state, tmp_path / "bound") as bound, Mounted(tmp_path / "other") as other:
        other.path, other.state = world.mount.path, bound
        other.start()
        assert_served(world)
        assert_refused(world)
        with Mounted(tmp_path / "second") as second:
            second.state = state
            done = second.try_start()
            assert (done.returncode, "is in use" in done.stderr) == (7, True)
        other.stop()


def fail(disk: Path) -> None:
    """Let ext4 find an error. From then on it refuses changes, whatever its flags say."""
    device = os.path.basename(succeed("findmnt", "-n", "-o", "SOURCE", disk).strip())
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    with refused(errno.EROFS):
        (disk / "probe").mkdir()


def test_a_disk_that_fails_below_a_mount_leaves_what_is_here_readable(world: World) -> None:
    remount(world.disk, "errors=remount-ro")
    fail(world.disk)
    assert_served(world)
    assert_refused(world)
    assert_served(world)
    assert kind(world.shop.at("done")) == "committed"
    assert "remount it writable" in error_of(world.blob)


_CHANGING = "mkdir,mkdirat,pwrite64,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat"


@contextmanager
def refusing(pid: int, log: Path) -> Generator[None]:
    """Make the disk read-only for the daemon in the block, as a server's disk that is remounted read-only."""
    inject = ["-e", f"trace={_CHANGING}", "-e", f"inject={_CHANGING}:error=EROFS"]
    command = [program("strace"), "-f", "-qq", "-o", str(log), *inject, "-p", str(pid)]
    with subprocess.Popen(command) as tracer:
        try:
            until(lambda: all(f"TracerPid:\t{tracer.pid}\n" in one.read_text() for one in threads(pid)))
            yield
        finally:
            tracer.terminate()


def threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").glob("*/status"))


def test_it_goes_on_where_it_was_when_the_disk_takes_changes_again(world: World, tmp_path: Path) -> None:
    pid = world.mount.pid()
    assert pid is not None
    with refusing(pid, tmp_path / "strace"):
        assert_refused(world, but="write")  # the kernel itself asks the disk for that one
        assert_served(world)
    assert_served(world)
    os.setxattr(world.blob, "user.label.colour", b"blue")
    append(world.mount.content / "ingest/begun", b"6")
    until(lambda: os.stat(world.unseen))  # a failed lookup is remembered briefly
    world.shop.commit("used", "finished")
    world.shop.at("done").rmdir()
    world.blob.unlink()
    world.mount.stop()
    world.mount.start()
    assert sorted(os.listdir(world.mount.snapshots / "active")) == ["fresh"]
    assert (world.shop.at("finished/rootfs") / "mine").read_text() == "mine\n"
    assert not world.blob.exists()
