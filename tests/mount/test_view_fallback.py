"""FUSE serves a view that the kernel cannot show, the reason is reported, and damaged metadata images are rebuilt."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mount_at
from imgfs.testing.images import DeviceFile, Dir, File, busybox_image, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.mount.kernel_views import FUSE, chain_of, forget_layers, metadata_image, prepare, shown_at, state_of
from tests.mount.scene import CONFIG, Scene, error_of, refused, run, serving, small, succeed
from tests.support.mounted import IMGFS, Mounted
from tests.support.trees import Node, compare_trees, snapshot_tree

NODES = image(
    [
        layer(
            [
                File("sh", Path("/bin/busybox").read_bytes(), mode=0o755),
                Dir("dev"),
                DeviceFile("dev/null", "character", 1, 3, mode=0o666),
                File("setuid", Path("/usr/bin/id").read_bytes(), mode=0o4755),
            ]
        )
    ]
)


def tree(scene: Scene, repository: str) -> dict[bytes, Node]:
    return snapshot_tree(os.path.realpath(f"{scene.name(repository)}/rootfs/", strict=True))


def check_fuse(scene: Scene, reason: str) -> None:
    """Check that FUSE serves whole views, read-only also for root, that `.imgfs/state.json` has the reason, and that
    snapshots can be written.
    """
    state = state_of(scene.mount)
    assert state["views"] == "fuse"
    assert reason in state["mounts"]["erofs"]
    busybox_image().add_to(scene.registry, "busybox", "1")
    rootfs = scene.name("busybox") / "rootfs"
    assert succeed("chroot", rootfs, "/bin/cat", "/usr/share/greeting") == "upper\n"
    snapshot = chain_of(scene, busybox_image())
    assert shown_at(scene.mount, snapshot) == ["fuse.imgfs"]
    assert os.access(rootfs / "etc/passwd", os.R_OK)
    assert not os.access(rootfs / "etc/passwd", os.W_OK)
    assert not os.access(rootfs, os.W_OK)
    assert run("test", "-w", rootfs / "etc").returncode == 1
    with refused(errno.EROFS):
        os.mkdir(rootfs / "new")
    assert error_of(snapshot) == ""


def test_the_view_option_selects_fuse(tmp_path: Path) -> None:
    with serving(tmp_path, FUSE) as scene:
        check_fuse(scene, "views = fuse")
        directory = prepare(scene, "over-fuse", chain_of(scene, busybox_image()).name)
        (directory / "rootfs/etc/passwd").write_bytes(b"changed\n")
        assert (directory / "rootfs/usr/share/greeting").read_bytes() == b"upper\n"
        scene.mount.stop()
        assert mount_at(str(scene.mount.path)) is None


def test_a_state_directory_on_tmpfs_is_refused_by_erofs(tmp_path: Path) -> None:
    with disk(tmp_path, "-t", "tmpfs", "tmpfs") as directory, serving(directory) as scene:
        check_fuse(scene, "tmpfs")
        scene.mount.stop()


@contextmanager
def disk(tmp_path: Path, *mount: str | Path) -> Generator[Path]:
    """Mount a filesystem at a directory while the block runs."""
    path = tmp_path / "disk"
    path.mkdir()
    succeed("mount", *mount, path)
    try:
        yield path
    finally:
        succeed("umount", path)


def test_shells_in_a_view_use_its_null_device(tmp_path: Path) -> None:
    for config in (CONFIG, FUSE):
        directory = tmp_path / config[-5:-2]
        directory.mkdir()
        with serving(directory, config) as scene:
            assert state_of(scene.mount)["trusted"] is True
            rootfs = scene.serve(NODES, "nodes") / "rootfs"
            assert (rootfs / "dev/null").read_bytes() == b""
            script = "echo gone > /dev/null && ! read line < /dev/null && echo here"
            assert succeed("chroot", rootfs, "/sh", "-c", script) == "here\n"


@pytest.mark.parametrize("config", [CONFIG, FUSE], ids=["kernel", "fuse"])
@pytest.mark.parametrize("options", [[], ["--nosuid"]], ids=["trusted", "nosuid"])
def test_setuid_and_devices_work_only_if_trusted(
    tmp_path: Path, registry: FakeRegistry, config: str, options: list[str]
) -> None:
    with Mounted(tmp_path, config) as mount:
        assert mount.try_start(*options).returncode == 0
        check_trust(Scene(registry, mount), trusted=not options)
        check_trust_of_overlay(Scene(registry, mount), trusted=not options)


def test_setuid_and_devices_do_not_work_if_other_users_have_access(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG + 'access = "all"\n') as scene:
        check_trust(scene, trusted=False)
        check_trust_of_overlay(scene, trusted=False)


def check_trust(scene: Scene, *, trusted: bool) -> None:
    assert state_of(scene.mount)["trusted"] is trusted
    rootfs = Path(os.path.realpath(scene.serve(NODES, "nodes") / "rootfs"))
    check_trust_in(rootfs, trusted=trusted)
    assert shown_at(scene.mount, rootfs.parent) == [
        "erofs" if state_of(scene.mount)["views"] == "kernel" else "fuse.imgfs"
    ]


def check_trust_of_overlay(scene: Scene, *, trusted: bool) -> None:
    directory = prepare(scene, "nodes", chain_of(scene, NODES).name)
    check_trust_in(directory / "rootfs", trusted=trusted)
    assert shown_at(scene.mount, directory) == ["overlay"]


def check_trust_in(rootfs: Path, *, trusted: bool) -> None:
    """Check that a setuid program makes its caller root and that a device opens, or that neither works."""
    assert (rootfs / "setuid").stat().st_mode & 0o7777 == 0o4755
    script = "import os, sys; os.chdir(sys.argv[1]); os.setgroups([]); os.setresgid(9, 9, 9); os.setresuid(9, 9, 9); "
    script += "os.execv('./setuid', ['id', '-u'])"
    assert succeed("python3", "-c", script, rootfs) == ("0\n" if trusted else "9\n")
    if trusted:
        assert (rootfs / "dev/null").read_bytes() == b""
    else:
        with refused(errno.EACCES):
            (rootfs / "dev/null").read_bytes()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("torn")) as made:
        yield made


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer by a page": lambda path: os.truncate(path, path.stat().st_size + 4096),
    "empty": lambda path: os.truncate(path, 0),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "bit in the superblock": lambda path: flip(path, 1024 + 40),
    "bit in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "bit at the end": lambda path: flip(path, path.stat().st_size - 1),
    "bit before the superblock": lambda path: flip(path, 0),
    "text": lambda path: path.write_text("not an image\n"),
    "missing": lambda path: path.unlink(),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


def test_damaged_metadata_images_are_rebuilt(scene: Scene) -> None:
    """All cases share one daemon, because each start takes longer than all the cases."""
    made = {damage: small(f"torn/{number}", layers=2) for number, damage in enumerate(DAMAGES)}
    names = {damage: f"torn/{number}" for number, damage in enumerate(DAMAGES)}
    for damage, one in made.items():
        scene.serve(one, names[damage])
    expected = {damage: tree(scene, name) for damage, name in names.items()}
    whole = {damage: metadata_image(scene.mount, one).read_bytes() for damage, one in made.items()}
    scene.mount.stop()
    for damage, one in made.items():
        DAMAGES[damage](metadata_image(scene.mount, one))
    scene.mount.start()
    for damage, one in made.items():
        with scene.silence():
            assert compare_trees(expected[damage], tree(scene, names[damage])) == [], damage
        assert shown_at(scene.mount, chain_of(scene, one)) == ["erofs"], damage
        assert metadata_image(scene.mount, one).read_bytes() == whole[damage], damage
        assert error_of(chain_of(scene, one)) == "", damage


def test_a_torn_metadata_image_and_its_missing_layers_are_restored(scene: Scene) -> None:
    made = small("torn/both", layers=2)
    scene.serve(made, "torn/both")
    expected = tree(scene, "torn/both")
    path = metadata_image(scene.mount, made)
    scene.mount.stop()
    os.truncate(path, 3000)
    forget_layers(scene.mount, made)
    scene.mount.start()
    with scene.requests("blob", "blob"):
        assert compare_trees(expected, tree(scene, "torn/both")) == []
    assert shown_at(scene.mount, chain_of(scene, made)) == ["erofs"]
    assert "metadata image is built again" in scene.mount.log()


def test_fuse_serves_the_view_if_the_views_directory_is_read_only(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:
        views = scene.mount.state / "views"
        succeed("mount", "--bind", "-o", "ro", views, views)
        try:
            made = small("unwritable", layers=2)
            name = scene.serve(made, "unwritable")
            assert (name / "rootfs/mark").read_bytes() == b"unwritable/1\n"
            check_refused(scene, chain_of(scene, made), "read-only filesystem")
            directory = prepare(scene, "over", chain_of(scene, made).name)
            assert (directory / "rootfs/mark").read_bytes() == b"unwritable/1\n"
        finally:
            succeed("umount", views)
        scene.mount.stop()
        scene.mount.start()
        assert (name / "rootfs/mark").read_bytes() == b"unwritable/1\n"
        assert shown_at(scene.mount, chain_of(scene, made)) == ["erofs"]


def test_fuse_serves_a_view_that_cannot_be_rebuilt(scene: Scene) -> None:
    made = small("torn/stuck", layers=2)
    scene.serve(made, "torn/stuck")
    expected = tree(scene, "torn/stuck")
    path = metadata_image(scene.mount, made)
    scene.mount.stop()
    path.unlink()
    path.mkdir()
    scene.mount.start()
    assert compare_trees(expected, tree(scene, "torn/stuck")) == []
    check_refused(scene, chain_of(scene, made), "Is a directory")


def check_refused(scene: Scene, snapshot: Path, reason: str) -> None:
    """Check that FUSE serves the snapshot read-only, and that the reason is reported."""
    assert shown_at(scene.mount, snapshot) == ["fuse.imgfs"]
    assert not os.access(snapshot / "rootfs/mark", os.W_OK)
    assert reason in error_of(snapshot)
    assert reason in scene.mount.log()
    assert state_of(scene.mount)["views"] == "kernel"


def test_fuse_serves_the_view_on_a_full_disk(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        file.truncate(32 << 20)
    succeed("mkfs.ext4", "-q", tmp_path / "image")
    with disk(tmp_path, "-o", "loop", tmp_path / "image") as directory, serving(directory) as scene:
        made = small("full", layers=2)
        (scene.serve(made, "full") / "pull").read_bytes()
        fill(directory / "filler")
        snapshot = chain_of(scene, made)
        assert (snapshot / "rootfs/mark").read_bytes() == b"full/1\n"
        check_refused(scene, snapshot, "No space left on device")
        (directory / "filler").unlink()
        scene.mount.stop()
        scene.mount.start()
        assert (snapshot / "rootfs/mark").read_bytes() == b"full/1\n"
        assert shown_at(scene.mount, snapshot) == ["erofs"]
        scene.mount.stop()


def fill(path: Path) -> None:
    """Fill the disk of `path` to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(file.fileno())


def test_the_error_of_root_without_the_capability_names_it(tmp_path: Path) -> None:
    """As in a container without CAP_SYS_ADMIN, where fusermount3 may not mount either."""
    with Mounted(tmp_path) as mount:
        words = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--ambient-caps=-all", *IMGFS]
        done = run(*words, "mount", mount.path, "--state", mount.state)
        assert done.returncode != 0
        assert "fusermount3" in done.stderr
        assert mount_at(str(mount.path)) is None


_IN_A_NAMESPACE = """
export IMGFS_MOUNTPOINT=$1/mnt
"$PYTHON" -m imgfs mount "$1/mnt" --state "$1/state"
cat "$1/mnt/.imgfs/state.json"
cat "$1/mnt/images/$2/rootfs/mark"
test -w "$1/mnt/images/$2/rootfs/mark" && echo writable
mkdir "$1/mnt/images/$2/rootfs/new" 2> /dev/null && echo made
grep -c "$1/mnt/snapshots" /proc/self/mountinfo
"$PYTHON" -m imgfs umount "$1/mnt"
grep -c "$1" /proc/self/mountinfo
"""


def test_root_of_a_user_namespace_gets_a_read_only_fuse_view(tmp_path: Path, registry: FakeRegistry) -> None:
    """The root of a user namespace may use FUSE and bind mounts, but not EROFS."""
    small("box").add_to(registry, "box", "1")
    words = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "env"]
    python = [f"PYTHON={sys.executable}", "sh", "-c", _IN_A_NAMESPACE, "sh"]
    done = run(*words, *python, tmp_path, f"{registry.host}/box:1")
    described, brace, rest = done.stdout.rpartition("}")
    state = json.loads(described + brace)
    assert (rest, done.stderr) == ("\nbox/0\n1\n0\n", "")
    assert state["views"] == "fuse"
    assert "not permitted" in state["mounts"]["erofs"]
