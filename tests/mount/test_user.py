"""Mounts of ordinary users, and the rights of other users in a mount of root.

Only root can become another user, so these tests run as root. Each mount of an ordinary user is in a mount namespace in
which that user may open /dev/fuse and run this Python, as on a machine that is set up for users.
"""

from __future__ import annotations

import grp
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import imgfs
from imgfs.oci.digest import chain_id
from imgfs.testing.images import DeviceFile, Dir, File, Symlink, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.programs import program, run

USER = 65534
STRANGER = 4711
SOURCES = Path(imgfs.__file__).parents[1]
BOX = image(
    [
        layer(
            [
                Dir("bin"),
                File("bin/id", Path("/usr/bin/id").read_bytes(), mode=0o4755),
                Dir("dev"),
                DeviceFile("dev/null", "character", 1, 3, mode=0o666),
                File("hello", b"hello\n", uid=1000, gid=2000),
                File("secret", b"secret\n", mode=0o600, uid=3),
                Symlink("link", "hello", uid=5),
            ]
        )
    ]
)

Done = subprocess.CompletedProcess[str]


def add(registry: FakeRegistry, tag: str = "1") -> str:
    """Serve the image and return its full name."""
    BOX.add_to(registry, "box", tag)
    return f"{registry.host}/box:{tag}"


def becoming(uid: int, gid: int) -> list[str]:
    """Return the setpriv command that runs the following command as this user and group."""
    return [program("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--inh-caps=-all"]


def execute(command: list[str], environment: dict[str, str] | None = None) -> Done:
    """Run a command to its end and do not check its exit code."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd="/", env=environment
    )


def as_other(*command: str | Path, uid: int = STRANGER, gid: int = STRANGER) -> Done:
    """Run a command as another user, by default as STRANGER."""
    return execute([*becoming(uid, gid), *map(str, command)])


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter, unlike tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="imgfs-user-"))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


class Home:
    """The directory of an ordinary user, with a state and a mountpoint, in a separate mount namespace."""

    def __init__(self, path: Path, namespace: int) -> None:
        self.path = path
        self.mountpoint = path / "mnt"
        self.state = path / "state"
        self.namespace = namespace

    def run(self, *command: str | Path, uid: int = USER) -> Done:
        """Run a command in the namespace."""
        environment = os.environ | {"IMGFS_MOUNTPOINT": str(self.mountpoint), "PYTHONPATH": str(SOURCES)}
        enter = [program("nsenter"), f"--mount=/proc/{self.namespace}/ns/mnt", "--wd=/"]
        return execute([*enter, *(becoming(uid, uid) if uid else []), *map(str, command)], environment)

    def imgfs(self, *arguments: str | Path) -> Done:
        """Run imgfs as the user."""
        return self.run(*IMGFS, *arguments)

    def mount(self, mountpoint: Path | None = None) -> Done:
        """Mount as the user."""
        return self.imgfs("mount", mountpoint or self.mountpoint, "--state", self.state)

    def mounts(self) -> list[str]:
        """Return the imgfs lines of the mount table of the namespace."""
        return [line for line in self.run("cat", "/proc/self/mountinfo").stdout.splitlines() if "fuse.imgfs" in line]

    def daemon(self) -> int:
        """Return a pidfd of the daemon."""
        return os.pidfd_open(int((self.state / "lock").read_text().split()[1]))

    def clear(self) -> None:
        """Unmount lazily if imgfs is mounted, and wait for the end of the daemon."""
        if self.mounts():
            daemon = self.daemon()
            assert self.run("umount", "-l", self.mountpoint, uid=0).returncode == 0
            wait_end(daemon)


def wait_end(process: int) -> None:
    """Wait until the process of a pidfd has ended."""
    try:
        assert select.select([process], [], [], PATIENCE)[0]
    finally:
        os.close(process)


@pytest.fixture
def home(public: Path) -> Iterator[Home]:
    """The directory of the user. Its mounts end with its mount namespace."""
    (public / "home").mkdir()
    os.chown(public / "home", USER, USER)
    with namespace(public) as pid:
        home = Home(public / "home", pid)
        yield home
        home.clear()


@contextmanager
def namespace(directory: Path) -> Generator[int]:
    """Yield the PID of a process in a mount namespace in which users may use FUSE and run this Python."""
    os.mknod(directory / "fuse", 0o20666, os.makedev(10, 229))
    (directory / "fuse").chmod(0o666)
    # The mounts of tests that run in parallel, which can end before this command reaches them.
    others = "grep -F fuse.imgfs /proc/self/mountinfo | cut -d ' ' -f 5 | tac | xargs -r umount -l 2> /dev/null || true"
    script = f"{others}; mount --bind {directory}/fuse /dev/fuse; {_opened_ways(directory)} echo ready; exec cat"
    command = [program("unshare"), "-m", "--propagation", "private", "sh", "-ec", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def _opened_ways(directory: Path) -> str:
    """Return shell commands that let users reach a Python that is installed below a closed directory such as /root."""
    needed = {Path(os.path.realpath(path)) for path in (sys.base_prefix, sys.prefix, SOURCES)}
    script = ""
    for closed in {parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001}:
        inside = [path for path in needed if closed in path.parents]
        for number, path in enumerate(inside):
            (directory / f"kept{number}").mkdir()
            script += f"mount --rbind {path} {directory}/kept{number}; "
        script += f"mount -t tmpfs -o mode=755 none {closed}; "
        for number, path in enumerate(inside):
            script += f"mkdir -p -m 755 {path}; mount --rbind {directory}/kept{number} {path}; "
    return script


def test_ordinary_user_mounts_reads_and_unmounts(home: Home, registry: FakeRegistry) -> None:
    done = home.mount()
    assert (done.returncode, done.stderr) == (0, "")
    rootfs = home.mountpoint / "images" / add(registry) / "rootfs"
    assert home.run("cat", rootfs / "hello").stdout == "hello\n"
    assert home.run("cat", rootfs / "secret").stdout == "secret\n"
    assert home.imgfs("umount").returncode == 0
    assert home.mounts() == []
    assert home.mount().returncode == 0
    before = registry.requests()
    assert home.run("cat", rootfs / "hello").stdout == "hello\n"
    assert registry.requests() == before


def test_files_of_a_users_mount_belong_to_the_user(home: Home, registry: FakeRegistry) -> None:
    home.mount()
    rootfs = home.mountpoint / "images" / add(registry) / "rootfs/"
    owners = home.run("find", f"{rootfs}/", "-printf", "%p %U %G\n").stdout.splitlines()
    assert len(owners) == 8
    assert {line.partition(" ")[2] for line in owners} == {f"{USER} {USER}"}
    assert home.run("stat", "-c", "%u %g %a", home.mountpoint).stdout == f"{USER} {USER} 700\n"


def test_users_mount_gives_no_rights(home: Home, registry: FakeRegistry) -> None:
    home.mount()
    [line] = home.mounts()
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))
    rootfs = home.mountpoint / "images" / add(registry) / "rootfs"
    assert home.run(rootfs / "bin/id", "-u").stdout == f"{USER}\n"
    assert "Permission denied" in home.run("cat", rootfs / "dev/null").stderr


@pytest.mark.parametrize("uid", [0, STRANGER])
def test_users_mount_is_closed_to_other_users(home: Home, uid: int) -> None:
    home.mount()
    for path in (home.mountpoint, home.mountpoint / ".imgfs"):
        assert "Permission denied" in home.run("ls", path, uid=uid).stderr


def test_user_changes_names_of_their_own_mount(home: Home, registry: FakeRegistry) -> None:
    home.mount()
    name = add(registry)
    assert home.imgfs("pull", name).returncode == 0
    assert home.imgfs("tag", name, "mine").returncode == 0
    assert home.imgfs("ls", "-q").stdout.split() == [name, "mine"]
    assert home.run("touch", "-h", home.mountpoint / "images" / name).returncode == 0
    assert home.imgfs("rm", "mine").returncode == 0


def test_user_labels_content_and_snapshots_of_their_own_mount(home: Home, registry: FakeRegistry) -> None:
    """The kernel lets only root set an xattr of a read-only file. Other users set the label at its directory."""
    home.mount()
    name = add(registry)
    assert home.imgfs("pull", name).returncode == 0
    blob, chain = home.mountpoint / "content" / BOX.digest, chain_id(BOX.diff_ids)
    assert "denied" in home.run("setfattr", "-n", "user.label.a", "-v", "1", blob).stderr
    for words in (("label", name, "a=1", "b=x y=z", "containerd.io/gc.root=now"), ("snapshot", "label", chain, "c=3")):
        done = home.imgfs(*words)
        assert (done.returncode, done.stderr) == (0, "")
    assert home.imgfs("label", BOX.digest).stdout == "a=1\nb=x y=z\ncontainerd.io/gc.root=now\n"
    assert home.imgfs("snapshot", "label", chain, "--format", "json").stdout == '{\n  "c": "3"\n}\n'
    assert home.run("getfattr", "--only-values", "-n", "user.label.b", blob).stdout == "x y=z"
    assert home.run("setfattr", "-n", "user.imgfs.label", "-v", f"{BOX.digest} a", blob.parent).returncode == 0
    assert home.imgfs("label", name, "b-").returncode == 0
    assert home.imgfs("label", name).stdout == "containerd.io/gc.root=now\n"
    assert home.imgfs("umount").returncode == 0
    home.mount()
    assert home.imgfs("label", name).stdout == "containerd.io/gc.root=now\n"


def test_user_unmounts_with_fusermount(home: Home) -> None:
    home.mount()
    daemon = home.daemon()
    assert home.run("fusermount3", "-u", home.mountpoint).returncode == 0
    wait_end(daemon)
    assert home.mounts() == []
    assert home.mount().returncode == 0


def test_user_mounts_again_after_a_killed_daemon(home: Home, registry: FakeRegistry) -> None:
    home.mount()
    name = add(registry)
    assert home.imgfs("pull", name).returncode == 0
    daemon = home.daemon()
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    wait_end(daemon)
    assert home.mount().returncode == 0
    assert len(home.mounts()) == 1
    assert home.run("cat", home.mountpoint / "images" / name / "rootfs/hello").stdout == "hello\n"


def test_busy_mount_of_a_user_is_7(home: Home) -> None:
    home.mount()
    script = f"exec 3< {home.mountpoint}/.imgfs/version; {' '.join(IMGFS)} umount; echo $?"
    assert home.run("sh", "-c", script).stdout == "7\n"
    assert home.imgfs("umount").returncode == 0


def test_refused_operations_of_a_user_are_explained(home: Home, public: Path) -> None:
    (public / "closed").mkdir(mode=0o700)
    done = home.imgfs("mount", home.mountpoint, "--state", public / "closed/state")
    assert done.returncode == 4
    assert f"{public}/closed/state/imgfs.toml: Permission denied" in done.stderr
    done = home.imgfs("mount", home.mountpoint, "--state", public / "unwritable")
    assert done.returncode == 1
    assert f"{public}/unwritable: Permission denied" in done.stderr
    (public / "roots").mkdir(mode=0o755)
    done = home.mount(public / "roots")
    assert done.returncode == 4
    assert f"{public}/roots" in done.stderr
    assert home.mounts() == []


def test_user_without_a_home_is_told_to_name_a_state(home: Home) -> None:
    done = home.run("env", "-u", "HOME", "-u", "XDG_STATE_HOME", *IMGFS, "mount", home.mountpoint, uid=STRANGER)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"imgfs: user {STRANGER}: has no home directory; name a state directory with --state\n"


def test_state_of_a_user_is_in_their_state_home(home: Home) -> None:
    done = home.run("env", f"XDG_STATE_HOME={home.path}/xdg", *IMGFS, "mount", home.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert home.run("ls", home.path / "xdg/imgfs").stdout.split()
    assert home.imgfs("umount").returncode == 0


def test_access_for_all_requires_user_allow_other(home: Home) -> None:
    home.run("mkdir", "-m", "700", home.state)
    home.run("sh", "-c", f"echo 'access = \"all\"' > {home.state}/imgfs.toml")
    done = home.mount()
    assert done.returncode == 4
    assert "user_allow_other" in done.stderr
    assert home.mounts() == []


def options_of(mounted: Mounted) -> set[str]:
    """Return the mount options that the kernel reports."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return set(next(line.split()[5] for line in lines if line.split()[4] == str(mounted.path)).split(","))


def test_roots_mount_is_closed_to_others_and_allows_devices(public: Path, registry: FakeRegistry) -> None:
    with Mounted(public) as mounted:
        mounted.start()
        rootfs = mounted.rootfs(add(registry))
        assert run("cat", rootfs / "hello") == b"hello\n"
        for path in (mounted.path, rootfs / "hello", mounted.path / ".imgfs/version"):
            assert "Permission denied" in as_other("cat", path).stderr
        assert options_of(mounted).isdisjoint({"nosuid", "nodev"})
        assert run("cat", rootfs / "dev/null") == b""
        assert (rootfs / "hello").stat().st_uid == 1000


def test_access_for_all_lets_others_read_and_gives_no_rights(public: Path, registry: FakeRegistry) -> None:
    with Mounted(public, 'access = "all"') as mounted:
        mounted.start()
        rootfs = mounted.rootfs(add(registry))
        assert {"nosuid", "nodev"} <= options_of(mounted)
        assert as_other("cat", rootfs / "hello").stdout == "hello\n"
        assert as_other(rootfs / "bin/id", "-u").stdout == f"{STRANGER}\n"
        assert "Permission denied" in as_other("cat", rootfs / "dev/null").stderr
        assert "Permission denied" in as_other("cat", rootfs / "secret").stderr
        assert as_other("cat", rootfs / "secret", uid=3).stdout == "secret\n"


def acl(stranger: int, *, mask: int = 4, others: int = 0) -> dict[str, bytes]:
    """Return an access ACL with an entry for STRANGER and none for the group (linux/posix_acl_xattr.h)."""
    undefined = 2**32 - 1
    entries = [(0x01, 6, undefined), (0x02, stranger, STRANGER), (0x04, 0, undefined)]
    entries += [(0x10, mask, undefined), (0x20, others, undefined)]
    return {"system.posix_acl_access": struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)}


@pytest.mark.parametrize("views", ["kernel", "fuse"])
def test_the_acl_of_a_file_decides_in_both_views(public: Path, registry: FakeRegistry, views: str) -> None:
    files = [
        File("allowed", b"allowed\n", mode=0o640, xattrs=acl(4)),
        File("denied", b"denied\n", mode=0o644, xattrs=acl(0, others=4)),
        File("plain", b"plain\n", mode=0o644),
        Dir("for-one", mode=0o770, xattrs=acl(7, mask=7)),
        File("for-one/file", b"inside\n"),
    ]
    image([layer(files)]).add_to(registry, "acl", "1")
    config = 'access = "all"\nplatform = "linux/amd64"\n' + ('views = "fuse"\n' if views == "fuse" else "")
    with Mounted(public, config) as mounted:
        mounted.start()
        rootfs = mounted.rootfs(f"{registry.host}/acl:1")
        os.listdir(f"{rootfs}/")
        readable = {name: as_other("cat", rootfs / name).returncode == 0 for name in ("allowed", "denied", "plain")}
        assert readable == {"allowed": True, "denied": False, "plain": True}
        assert as_other("cat", rootfs / "for-one/file").stdout == "inside\n"
        other = STRANGER - 1
        readable = {name: as_other("cat", rootfs / name, uid=other).returncode == 0 for name in ("allowed", "denied")}
        assert readable == {"allowed": False, "denied": True}
        assert as_other("ls", rootfs / "for-one", uid=other, gid=other).returncode != 0
        assert as_other("ls", "-l", mounted.path / "content").returncode == 0


def test_directories_made_above_the_mountpoint_let_others_pass(public: Path) -> None:
    with Mounted(public, 'access = "all"') as mounted:
        mounted.path = public / "deep/mnt"
        mounted.start()
        assert as_other("ls", mounted.path).returncode == 0
        assert "Permission denied" in as_other("ls", mounted.state).stderr


def test_only_root_changes_names_and_content(public: Path, registry: FakeRegistry) -> None:
    with Mounted(public, 'access = "all"') as mounted:
        mounted.start()
        name = mounted.image(add(registry))
        assert as_other("cat", name / "rootfs/hello").stdout == "hello\n"
        digest, blob = os.readlink(name), next(mounted.content.glob("sha256:*"))
        image([layer([File("moved")])]).add_to(registry, "box", "1")
        attempts: list[tuple[str | Path, ...]] = [
            ("rm", "-f", name),
            ("mv", name, name.with_name("box:2")),
            ("ln", "-s", digest, name.with_name("mine")),
            ("ln", "-sfn", BOX.digest, name),
            ("touch", name),
            ("touch", "-h", name),
            ("touch", "-h", "-d", "yesterday", name),
            ("setfattr", "-n", "user.imgfs.pull", "-v", "1", name),
            ("setfattr", "-n", "user.imgfs.tag", "-v", "mine", name),
            ("setfattr", "-n", "user.label.mine", "-v", "1", blob),
            ("setfattr", "-n", "user.imgfs.label", "-v", f"{digest} mine=1", mounted.content),
            ("setfattr", "-n", "user.imgfs.label", "-v", f"{chain_id(BOX.diff_ids)} mine=1", mounted.snapshots),
            ("rm", "-f", blob),
            ("mkdir", mounted.snapshots / "mine"),
        ]
        for attempt in attempts:
            done = as_other(*attempt)
            assert done.returncode != 0, attempt
            assert "ermi" in done.stderr, (attempt, done.stderr)
        assert os.readlink(name) == digest
        assert registry.requests("tag") == 0


def test_access_for_a_group_admits_only_its_members(public: Path, registry: FakeRegistry) -> None:
    group = grp.getgrnam("daemon")
    with Mounted(public, f'access = "group:{group.gr_name}"') as mounted:
        mounted.start()
        rootfs = mounted.rootfs(add(registry))
        assert {"nosuid", "nodev"} <= options_of(mounted)
        assert as_other("cat", rootfs / "hello", gid=group.gr_gid).stdout == "hello\n"
        assert as_other(rootfs / "bin/id", "-u", gid=group.gr_gid).stdout == f"{STRANGER}\n"
        assert "Permission denied" in as_other("cat", rootfs / "hello").stderr
        assert (mounted.path.stat().st_mode & 0o777, mounted.path.stat().st_gid) == (0o750, group.gr_gid)
