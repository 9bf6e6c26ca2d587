"""Kernel views are mounted on first use and unmounted when idle, and no end of the daemon leaves one behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mounts, mounts_below
from imgfs.testing.build import Image
from imgfs.testing.images import busybox_image
from tests.mount.kernel_views import chain_of, prepare, shown, shown_at
from tests.mount.scene import CONFIG, Scene, error_of, refused, run, serving, small, succeed, until

END = 15
"""Seconds within which a daemon ends after a request to end."""
IDLE = CONFIG + "view_idle_seconds = 1\n"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("ways")) as made:
        yield made


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two images whose layers are here, and an active snapshot on the second."""
    with serving(tmp_path_factory.mktemp("ends")) as made:
        pulled(made, "pulled")
        prepare(made, "key", pulled(made, "other")[1].name)
        yield made


@pytest.fixture
def own(mortal: Scene) -> Scene:
    """A scene whose daemon the test may end."""
    if mortal.mount.pid() is None:
        mortal.mount.start()
    return mortal


def pulled(scene: Scene, repository: str, layers: int = 2) -> tuple[Image, Path]:
    """Pull an image; return it, and the directory of its chain, whose view was never used."""
    made = small(repository, layers=layers)
    (scene.serve(made, repository) / "pull").read_bytes()
    return made, chain_of(scene, made)


def in_child(code: str, path: str) -> None:
    """Run Python with `path` as its argument in a child, because chdir and chroot affect a whole process."""
    succeed(sys.executable, "-c", code, path)


def opened(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


@contextmanager
def inside(path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process whose working directory is `path`."""
    with subprocess.Popen(["cat"], cwd=path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


WAYS: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "listdir": os.listdir,
    "open": opened,
    "ls -l": lambda path: succeed("ls", "-l", path),
    "ls -ld": lambda path: succeed("ls", "-ld", path),
    "file below": lambda path: Path(path, "mark").read_bytes(),
    "stat below": lambda path: os.lstat(f"{path}0/link"),
    "chdir": lambda path: in_child("import os, sys; os.chdir(sys.argv[1]); os.listdir('.')", path),
    "chroot": lambda path: in_child("import os, sys; os.chroot(sys.argv[1]); os.listdir('/0')", path),
    "find": lambda path: succeed("find", path),
    "du": lambda path: succeed("du", "-s", path),
    "df": lambda path: succeed("df", path),
    "xattrs below": lambda path: os.listxattr(f"{path}mark"),
    "access": lambda path: os.access(path, os.R_OK),
}


@pytest.mark.parametrize("by", ["name", "chain ID"])
@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_access_mounts_the_view(scene: Scene, way: str, by: str) -> None:
    repository = f"way/{list(WAYS).index(way)}/{len(by)}"
    _, snapshot = pulled(scene, repository)
    rootfs = (scene.name(repository) if by == "name" else snapshot) / "rootfs"
    assert shown_at(scene.mount, snapshot) == []
    WAYS[way](f"{rootfs}/")
    assert shown_at(scene.mount, snapshot) == ["erofs"]
    assert (rootfs / "mark").read_bytes() == f"{repository}/1\n".encode()


def test_the_first_reader_of_an_image_reads_the_kernels_view(scene: Scene) -> None:
    made = small("first", layers=2)
    name = scene.serve(made, "first")
    assert (name / "rootfs/mark").read_bytes() == b"first/1\n"
    assert shown_at(scene.mount, chain_of(scene, made)) == ["erofs"]
    assert os.stat(f"{name}/rootfs/").st_dev != os.stat(scene.mount.path).st_dev


def test_listings_mount_nothing(scene: Scene) -> None:
    _, snapshot = pulled(scene, "around")
    before = shown(scene.mount)
    succeed("ls", scene.mount.snapshots)
    succeed("ls", "-l", scene.mount.snapshots)
    succeed("ls", snapshot)
    os.listxattr(snapshot)
    os.readlink(snapshot / "parent")
    os.listdir(snapshot / "diff")
    os.readlink(scene.name("around") / "rootfs")
    os.lstat(scene.name("around") / "rootfs")
    assert shown(scene.mount) == before


def test_parents_and_tops_have_separate_mounts(scene: Scene) -> None:
    _, snapshot = pulled(scene, "parents", layers=3)
    assert sorted(os.listdir(snapshot / "parent/rootfs")) == ["0", "1", "mark"]
    parent = Path(os.path.realpath(snapshot / "parent"))
    assert (shown_at(scene.mount, snapshot), shown_at(scene.mount, parent)) == ([], ["erofs"])
    assert sorted(os.listdir(snapshot / "rootfs")) == ["0", "1", "2", "mark"]
    assert (shown_at(scene.mount, snapshot), shown_at(scene.mount, parent)) == (["erofs"], ["erofs"])


def test_a_view_is_read_only_for_root_too(scene: Scene) -> None:
    _, snapshot = pulled(scene, "read-only")
    assert not os.access(snapshot / "rootfs/mark", os.W_OK)
    assert not os.access(snapshot / "rootfs", os.W_OK)
    assert run("test", "-w", snapshot / "rootfs").returncode == 1
    with refused(30):
        (snapshot / "rootfs/mark").write_bytes(b"")


def test_idle_mounts_are_unmounted_and_mounted_again_at_the_next_use(tmp_path: Path) -> None:
    with serving(tmp_path, IDLE) as scene:
        _, used = pulled(scene, "used")
        _, idle = pulled(scene, "idle")
        numbers = succeed("ls", "-lRi", idle / "rootfs")
        directory = prepare(scene, "idle", idle.name)
        os.listdir(directory / "rootfs")
        with inside(used / "rootfs"):
            until(lambda: shown_at(scene.mount, idle) == shown_at(scene.mount, directory) == [])
            until(lambda: "idle view unmounted" in scene.mount.log())
            assert shown_at(scene.mount, used) == ["erofs"]
        with scene.silence():
            assert (idle / "rootfs/mark").read_bytes() == b"idle/1\n"
            assert shown_at(scene.mount, idle) == ["erofs"]
            assert succeed("ls", "-lRi", idle / "rootfs") == numbers
            assert (scene.name("idle") / "rootfs/0/file").read_bytes() == b"file of idle/0\n" * 100
            assert (directory / "rootfs/mark").read_bytes() == b"idle/1\n"
        until(lambda: shown(scene.mount) == [])


def test_a_snapshot_over_fuse_is_readable_without_a_mount_of_its_view(tmp_path: Path) -> None:
    with serving(tmp_path, IDLE + 'views = "fuse"\n') as scene:
        _, chain = pulled(scene, "below")
        rootfs = prepare(scene, "upon", chain.name) / "rootfs"
        names = sorted(["mark", *(str(number) for number in range(2)), "new"])
        (rootfs / "new").touch()
        scene.mount.stop()
        scene.mount.start()
        assert sorted(os.listdir(rootfs)) == names  # no process has used the chain since the start
        with inside(rootfs):
            until(lambda: shown_at(scene.mount, chain) == [])
            assert sorted(os.listdir(rootfs)) == names
            assert (rootfs / "mark").read_bytes() == b"below/1\n"


def test_a_writable_rootfs_with_a_copy_of_its_mount_is_in_use(tmp_path: Path) -> None:
    with serving(tmp_path, IDLE) as scene:
        _, idle = pulled(scene, "idle")
        rootfs, elsewhere = prepare(scene, "bound", idle.name) / "rootfs", tmp_path / "elsewhere"
        elsewhere.mkdir()
        os.listdir(rootfs)
        succeed("mount", "--bind", rootfs, elsewhere)
        try:
            os.listdir(idle / "rootfs")
            until(lambda: shown_at(scene.mount, idle) == [])  # the other mount was checked too
            (elsewhere / "new").write_bytes(b"there\n")
            with refused(errno.EBUSY):
                os.rename(rootfs.parent, scene.mount.snapshots / "committed")
            assert (rootfs / "new").read_bytes() == b"there\n"
        finally:
            succeed("umount", elsewhere)
        until(lambda: shown(scene.mount) == [])


def test_a_bind_from_below_a_writable_rootfs_has_advice(scene: Scene, tmp_path: Path) -> None:
    directory = prepare(scene, "beneath", pulled(scene, "beneath")[1].name)
    succeed("mount", "--bind", directory / "rootfs", tmp_path)
    try:
        with refused(errno.EPERM):
            os.listdir(tmp_path)
        assert f"`umount {tmp_path}`" in error_of(directory)
    finally:
        succeed("umount", tmp_path)
    succeed("ls", directory / "rootfs")
    succeed("mount", "--bind", directory / "rootfs", tmp_path)
    try:
        assert (tmp_path / "mark").read_bytes() == b"beneath/1\n"
    finally:
        succeed("umount", tmp_path)


@pytest.mark.parametrize("above", ["snapshots/active/inside", "snapshots", "."])
def test_a_bind_above_a_writable_rootfs_has_advice(scene: Scene, tmp_path: Path, above: str) -> None:
    directory = scene.mount.snapshots / "active/inside"
    if not directory.exists():
        prepare(scene, "inside", pulled(scene, "inside")[1].name)
    source = scene.mount.path / above
    passing = tmp_path / directory.relative_to(source) / "rootfs"
    succeed("mount", "--bind", source, tmp_path)
    try:
        with refused(errno.EPERM):
            os.listdir(passing)
        assert f"`umount {tmp_path}`" in error_of(directory)
        assert (directory / "rootfs/mark").read_bytes() == b"inside/1\n"
    finally:
        succeed("umount", tmp_path)
    succeed("mount", "--rbind", source, tmp_path)
    try:
        assert (passing / "mark").read_bytes() == b"inside/1\n"
    finally:
        succeed("umount", "--recursive", tmp_path)


def test_inode_numbers_are_the_same_after_an_unmount(own: Scene) -> None:
    rootfs = used(own)
    paths = (rootfs, own.mount.snapshots / "active/key/rootfs")
    before = [succeed("ls", "-lRi", path) for path in paths]
    outside = [os.lstat(path.parent).st_ino for path in paths]
    own.mount.stop()
    own.mount.start()
    assert [succeed("ls", "-lRi", path) for path in paths] == before
    assert [os.lstat(path.parent).st_ino for path in paths] == outside


def used(scene: Scene) -> Path:
    """Mount a view, and an overlay on another chain; return the rootfs of the view."""
    rootfs = chain_of(scene, small("pulled", layers=2)) / "rootfs"
    assert sorted(os.listdir(rootfs)) == ["0", "1", "mark"]
    os.listdir(scene.mount.snapshots / "active/key/rootfs")
    assert sorted(one.filesystem for one in shown(scene.mount)) == ["erofs", "overlay"]
    return rootfs


def gone(scene: Scene) -> bool:
    """Return whether the mount table has no mount of the tree."""
    return not [one for one in mounts() if str(scene.mount.path.parent) in f"{one.mountpoint} {one.source}"]


def daemon(scene: Scene) -> int:
    """Return a pidfd of the daemon."""
    pid = scene.mount.pid()
    assert pid is not None
    return os.pidfd_open(pid)


def ended(process: int) -> bool:
    try:
        signal.pidfd_send_signal(process, 0)
    except ProcessLookupError:
        return True
    return False


def again(scene: Scene) -> None:
    """Start the daemon again, and check that it serves the images and the active snapshot."""
    scene.mount.start()
    with scene.silence():
        assert (scene.name("pulled") / "rootfs/mark").read_bytes() == b"pulled/1\n"
    assert sorted(os.listdir(scene.mount.snapshots / "active/key/rootfs")) == ["0", "1", "mark"]


def by_signal(number: int) -> Callable[[Scene], object]:
    return lambda scene: signal.pidfd_send_signal(daemon(scene), number)


ENDS: dict[str, Callable[[Scene], object]] = {
    "imgfs umount": lambda scene: scene.mount.stop(),
    "imgfs umount --lazy": lambda scene: scene.mount.run("umount", "--lazy", str(scene.mount.path)).check_returncode(),
    "SIGTERM": by_signal(signal.SIGTERM),
    "SIGINT": by_signal(signal.SIGINT),
    "umount -R": lambda scene: succeed("umount", "-R", scene.mount.path),
    "umount -l": lambda scene: succeed("umount", "-l", scene.mount.path),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_way_to_stop_the_daemon_leaves_a_mount(own: Scene, end: str) -> None:
    used(own)
    process = daemon(own)
    ENDS[end](own)
    until(lambda: ended(process))
    os.close(process)
    assert gone(own)
    again(own)


def test_umount_with_a_view_in_use_is_busy_and_changes_nothing(own: Scene) -> None:
    rootfs = used(own)
    with inside(rootfs):
        done = own.mount.run("umount", str(own.mount.path))
        assert done.returncode == 7
        assert "in use" in done.stderr
        assert (rootfs / "mark").read_bytes() == b"pulled/1\n"
        assert (own.name("other") / "rootfs/mark").read_bytes() == b"other/1\n"
        assert own.mount.pid() is not None
    own.mount.stop()
    assert gone(own)


@pytest.mark.parametrize("end", ["imgfs umount --lazy", "umount -l"])
def test_a_lazy_unmount_lets_readers_of_a_view_continue(own: Scene, end: str) -> None:
    rootfs = used(own)
    process = daemon(own)
    with (rootfs / "0/file").open("rb", buffering=0) as file:
        ENDS[end](own)
        assert gone(own)
        assert file.read() == b"file of pulled/0\n" * 100
    until(lambda: ended(process))
    os.close(process)
    again(own)


def test_a_signal_stops_the_daemon_although_a_view_is_in_use(own: Scene) -> None:
    rootfs = used(own)
    process = daemon(own)
    with inside(rootfs) as user, (rootfs / "0/file").open("rb", buffering=0) as file:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        until(lambda: ended(process))
        assert gone(own)
        assert file.read() == b"file of pulled/0\n" * 100
        assert Path(f"/proc/{user.pid}/cwd/mark").read_bytes() == b"pulled/1\n"
    os.close(process)
    again(own)


def test_views_of_a_killed_daemon_are_readable_until_the_next_start(own: Scene) -> None:
    rootfs = used(own)
    directory = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        own.mount.kill()
        assert len(mounts_below(str(own.mount.path))) == 2
        again(own)
        with open(os.open("0/file", os.O_RDONLY, dir_fd=directory), "rb") as file:
            assert file.read() == b"file of pulled/0\n" * 100
        assert sorted(one.filesystem for one in shown(own.mount)) == ["erofs", "overlay"]
    finally:
        os.close(directory)
    own.mount.stop()
    assert gone(own)


def test_umount_removes_the_views_of_a_killed_daemon(own: Scene) -> None:
    used(own)
    own.mount.kill()
    own.mount.stop()
    assert gone(own)


def test_a_program_continues_in_the_view_of_a_killed_daemon(own: Scene) -> None:
    busybox_image().add_to(own.registry, "busybox", "1")
    rootfs = os.path.realpath(own.name("busybox") / "rootfs")
    shell = ["chroot", rootfs, "/bin/sh", "-c", "read line; cat /usr/share/greeting; ls /etc"]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("busybox"))
        own.mount.kill()
        assert process.communicate(b"go\n", timeout=END)[0] == b"upper\ngroup\nos-release\npasswd\n"


def test_an_unmounted_view_is_served_by_fuse_and_mounted_again(tmp_path: Path) -> None:
    with serving(tmp_path, IDLE) as scene:
        _, snapshot = pulled(scene, "taken")
        os.listdir(snapshot / "rootfs")
        succeed("umount", snapshot / "rootfs")
        assert (snapshot / "rootfs/mark").read_bytes() == b"taken/1\n"
        until(lambda: os.listdir(snapshot / "rootfs") and shown_at(scene.mount, snapshot) == ["erofs"])
        assert (snapshot / "rootfs/mark").read_bytes() == b"taken/1\n"
