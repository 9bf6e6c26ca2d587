"""Programs, static and dynamic, run in a rootfs by chroot, as in an unpacked image."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from imgfs.testing.images import DeviceFile, Dir, Entry, File, Symlink, busybox_image, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import PATIENCE, Mounted
from tests.support.programs import program, run

SEED = bytes(range(256)) * 40_000


def host_files(*programs: str) -> list[Entry]:
    """Programs of this machine and the libraries that they are linked with, at the same paths."""
    found: set[Path] = set()
    for one in programs:
        path = Path(program(one))
        found |= {path, *map(Path, re.findall(r"(/\S+) \(0x", run("ldd", path).decode()))}
    parents = {parent for path in found for parent in path.parents if parent != Path("/")}
    directories: list[Entry] = [Dir(str(path)[1:]) for path in sorted(parents)]
    return directories + [File(str(path)[1:], path.read_bytes(), mode=0o755) for path in sorted(found)]


@pytest.fixture
def busybox(mounted: Mounted, registry: FakeRegistry) -> Path:
    """The rootfs of the busybox image."""
    busybox_image().add_to(registry, "busybox", "1")
    return Path(os.path.realpath(mounted.rootfs(f"{registry.host}/busybox:1"), strict=True))


def serve(mounted: Mounted, registry: FakeRegistry, entries: Sequence[Entry]) -> Path:
    """Serve an image of one layer, and return its rootfs."""
    image([layer(entries)]).add_to(registry, "own", "1")
    return Path(os.path.realpath(mounted.rootfs(f"{registry.host}/own:1"), strict=True))


def test_static_shell_runs_and_sees_only_its_root(busybox: Path) -> None:
    script = "cat /usr/share/greeting; ls /etc; ls /..; readlink /bin/ls; id -u; stat -c %a /tmp"
    told = run("chroot", busybox, "/bin/busybox", "sh", "-c", script).decode().split()
    assert told[:4] == ["upper", "group", "os-release", "passwd"]
    assert told[4:-3] == ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var"]
    assert told[-3:] == ["busybox", "0", "1777"]


def test_a_link_that_is_a_program_runs(busybox: Path) -> None:
    assert run("chroot", busybox, "/bin/sh", "-c", "exec /bin/echo $0 $((6 * 7))") == b"/bin/sh 42\n"


def test_the_rootfs_below_the_image_name_is_a_root_too(busybox: Path, mounted: Mounted, registry: FakeRegistry) -> None:
    rootfs = mounted.rootfs(f"{registry.host}/busybox:1")
    assert run("chroot", rootfs, "/bin/cat", "/usr/share/greeting") == b"upper\n"


def test_the_rootfs_is_read_only(busybox: Path) -> None:
    script = "for path in /new /etc/passwd; do echo x > $path; done; rm /etc/group; mkdir /etc/d; touch /etc"
    command = [program("chroot"), str(busybox), "/bin/sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.stderr.count("Read-only file system") == 5
    assert not (busybox / "new").exists()


def test_device_nodes_work(mounted: Mounted, registry: FakeRegistry) -> None:
    nodes: list[Entry] = [
        DeviceFile(f"dev/{name}", "character", 1, minor, mode=0o666) for name, minor in (("null", 3), ("zero", 5))
    ]
    rootfs = serve(mounted, registry, [Dir("dev"), *nodes])
    assert (rootfs / "dev/null").read_bytes() == b""
    with (rootfs / "dev/null").open("wb", buffering=0) as null:
        assert null.write(b"gone") == 4
    with (rootfs / "dev/zero").open("rb", buffering=0) as zero:
        assert zero.read(100) == bytes(100)


def test_a_shell_in_the_rootfs_writes_to_its_null_device(mounted: Mounted, registry: FakeRegistry) -> None:
    static = Path("/bin/busybox").read_bytes()
    entries = [
        File("sh", static, mode=0o755),
        Dir("dev"),
        DeviceFile("dev/null", "character", 1, 3, mode=0o666),
    ]
    rootfs = serve(mounted, registry, entries)
    assert (
        run("chroot", rootfs, "/sh", "-c", "echo gone > /dev/null && ! read line < /dev/null && echo here") == b"here\n"
    )


def test_setuid_and_setgid_bits_are_shown_and_work(mounted: Mounted, registry: FakeRegistry) -> None:
    entries = [
        *host_files("id", "setpriv"),
        File("setuid", Path(program("id")).read_bytes(), mode=0o4755),
        File("setgid", Path(program("id")).read_bytes(), mode=0o2755, gid=50),
    ]
    rootfs = serve(mounted, registry, entries)
    assert stat.S_IMODE((rootfs / "setuid").stat().st_mode) == 0o4755
    assert stat.S_IMODE((rootfs / "setgid").stat().st_mode) == 0o2755
    become = [program("setpriv"), "--reuid=4711", "--regid=4711", "--clear-groups"]
    assert run("chroot", rootfs, *become, "/setuid", "-u") == b"0\n"
    assert run("chroot", rootfs, *become, "/setgid", "-g") == b"50\n"
    assert run("chroot", rootfs, *become, program("id"), "-u") == b"4711\n"


def test_dynamic_program_runs(mounted: Mounted, registry: FakeRegistry) -> None:
    rootfs = serve(mounted, registry, [*host_files("bash", "cat", "ls"), File("word", b"dynamic\n")])
    script = f"{program('cat')} /word && {program('ls')} / && echo $BASH_VERSION"
    told = run("chroot", rootfs, program("bash"), "-c", script).decode().split()
    assert told[0] == "dynamic"
    assert "word" in told
    assert told[-1][0].isdigit()


def test_dynamic_program_runs_after_a_remount_and_without_registry(mounted: Mounted) -> None:
    with FakeRegistry() as registry:
        serve(mounted, registry, [*host_files("cat"), File("word", b"again\n")])
        name = f"{registry.host}/own:1"
        assert mounted.run("pull", name).returncode == 0
    mounted.stop()
    mounted.start()
    assert run("chroot", mounted.rootfs(name), program("cat"), "/word") == b"again\n"


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_files_can_be_mapped(mounted: Mounted, registry: FakeRegistry, flags: int) -> None:
    rootfs = serve(mounted, registry, [File("big", SEED)])
    with (rootfs / "big").open("rb") as file, mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as mapped:
        assert mapped[9_999_999] == SEED[9_999_999]
        assert mapped[:] == SEED


def test_program_that_is_mapped_keeps_the_tree_busy(busybox: Path, mounted: Mounted) -> None:
    command = [program("chroot"), str(busybox), "/bin/cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"up\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"up\n"
        assert mounted.run("umount", str(mounted.path)).returncode == 7
        assert mounted.run("umount", "--lazy", str(mounted.path)).returncode == 0
        running.stdin.write(b"still\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"still\n"


def test_a_copy_of_the_rootfs_is_equal_and_writable(busybox: Path, tmp_path: Path) -> None:
    run("cp", "-a", busybox, tmp_path / "copy")
    assert run("diff", "-r", "--no-dereference", busybox, tmp_path / "copy") == b""
    (tmp_path / "copy/usr/share/greeting").write_bytes(b"changed\n")
    assert run("chroot", tmp_path / "copy", "/bin/cat", "/usr/share/greeting") == b"changed\n"
    shutil.rmtree(tmp_path / "copy")


def test_a_tar_of_the_rootfs_has_the_entries_of_the_layer(
    mounted: Mounted, registry: FakeRegistry, tmp_path: Path
) -> None:
    entries = [Dir("d", mode=0o700, uid=3), File("d/file", b"x" * 70_000, uid=1, gid=2), Symlink("l", "d/file")]
    rootfs = serve(mounted, registry, entries)
    run("tar", "-C", rootfs, "-cf", tmp_path / "out.tar", ".")
    listed = run("tar", "--numeric-owner", "-tvf", tmp_path / "out.tar").decode()
    assert re.findall(r"^(\S+ \S+) ", listed, re.MULTILINE)[1:] == [
        "drwx------ 3/0",
        "-rw-r--r-- 1/2",
        "lrwxrwxrwx 0/0",
    ]
    assert run("tar", "-C", rootfs, "-df", tmp_path / "out.tar") == b""
