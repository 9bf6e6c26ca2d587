"""The life of the daemon: its start, its refusals, all ways to end it, and the state after each."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs import __version__
from imgfs.fs.session import MAX_BACKGROUND
from imgfs.kernel.mounts import is_dead, mount_at
from imgfs.oci.digest import Digest
from imgfs.oci.platform import local_platform
from imgfs.testing.faults import stall
from imgfs.testing.images import Dir, File, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.programs import free_port, program, run

BOX = image(
    [
        layer([Dir("etc"), File("etc/box", b"1" * 5000), File("noise", os.urandom(300_000))]),
        layer([File("etc/more", os.urandom(70_000))], "none"),
        layer([File("etc/last", b"3")], "zstd"),
    ]
)


def add(registry: FakeRegistry, tag: str = "1") -> str:
    """Serve the image and return its full name."""
    BOX.add_to(registry, "box", tag)
    return f"{registry.host}/box:{tag}"


def read_whole(mounted: Mounted, name: str) -> None:
    """Assert that every byte of the image is right."""
    rootfs = os.path.realpath(mounted.rootfs(name), strict=True)
    assert sorted(os.listdir(rootfs)) == ["etc", "noise"]
    assert sorted(os.listdir(f"{rootfs}/etc")) == ["box", "last", "more"]
    assert Path(rootfs, "etc/box").read_bytes() == b"1" * 5000
    assert len(Path(rootfs, "noise").read_bytes()) == 300_000
    assert len(Path(rootfs, "etc/more").read_bytes()) == 70_000


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` is true. Fail when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{condition}: does not come true"


@contextmanager
def foreground(mounted: Mounted, *prefix: str, options: tuple[str, ...] = ()) -> Generator[subprocess.Popen[bytes]]:
    """Run `imgfs mount -f` until the tree answers or the daemon has ended. It is gone afterwards; `stderr` has its
    stderr.
    """
    command = [*prefix, *IMGFS, "mount", "-f", str(mounted.path), "--state", str(mounted.state), *options]
    with (mounted.path.parent / "stderr").open("ab") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
    try:
        eventually(lambda: mounted.pid() is not None or process.poll() is not None)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def temporaries(state: Path) -> list[Path]:
    """Return written files that have no final name yet."""
    # os.walk, because a directory may be removed or renamed meanwhile.
    found = ((top, name) for top, directories, files in os.walk(state) for name in (*directories, *files))
    return [Path(top, name) for top, name in found if name.startswith(".tmp-")]


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Mounted]:
    """A mount that the test starts itself, with an existing state directory."""
    with Mounted(tmp_path) as mounted:
        mounted.state.mkdir(mode=0o700)
        yield mounted


def test_mount_returns_when_the_tree_answers_and_its_daemon_is_on_its_own(mounted: Mounted) -> None:
    assert sorted(os.listdir(mounted.path)) == [".imgfs", "containers", "content", "images", "snapshots"]
    pid = mounted.pid()
    assert pid is not None
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3


def test_state_json_tells_the_truth(mounted: Mounted) -> None:
    state = json.loads((mounted.path / ".imgfs/state.json").read_bytes())
    assert state["version"] == __version__
    assert (mounted.path / ".imgfs/version").read_text() == f"{__version__}\n"
    assert state["mountpoint"] == str(mounted.path)
    assert state["state"] == str(mounted.state)
    assert state["platform"] == str(local_platform())
    assert state["access"] == "root"
    assert b"imgfs" in Path(f"/proc/{state['pid']}/cmdline").read_bytes()


def test_daemon_may_open_as_many_files_as_it_is_allowed(mounted: Mounted) -> None:
    limits = Path(f"/proc/{mounted.pid()}/limits").read_text().splitlines()
    soft, hard = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
    assert soft == hard


def test_mount_shows_as_imgfs_and_the_kernel_may_ask_for_much_at_once(mounted: Mounted, tmp_path: Path) -> None:
    found = mount_at(str(mounted.path))
    assert found is not None
    assert (found.filesystem, found.source) == ("fuse.imgfs", "imgfs")
    (tmp_path / "control").mkdir()
    run("mount", "-t", "fusectl", "none", tmp_path / "control")
    try:
        connection = tmp_path / "control" / str(found.device[1])
        assert (connection / "max_background").read_text() == f"{MAX_BACKGROUND}\n"
    finally:
        run("umount", tmp_path / "control")
    assert Path(f"/sys/class/bdi/0:{found.device[1]}/read_ahead_kb").read_text() == "1024\n"


def test_state_directory_is_its_owners_alone(mounted: Mounted) -> None:
    assert mounted.state.stat().st_mode & 0o777 == 0o700
    assert not [path for path in mounted.state.rglob("*") if path.stat().st_mode & 0o077]


def test_foreground_stays_and_logs_to_stderr(idle: Mounted) -> None:
    with foreground(idle) as process:
        assert idle.pid() == process.pid
        host = f"127.0.0.1:{free_port()}"
        with pytest.raises(OSError) as caught:
            os.readlink(idle.image(f"{host}/box:1"))
        assert caught.value.errno == errno.EHOSTUNREACH
        told = [json.loads(line) for line in (idle.path.parent / "stderr").read_text().splitlines()]
        assert [one["level"] for one in told if one.get("subject") == f"images/{host}"] == ["warning"]
        assert told == [json.loads(line) for line in idle.log().splitlines()]


def test_no_config_is_needed_and_the_options_in_force_are_shown(mounted: Mounted) -> None:
    shown = (mounted.path / ".imgfs/config").read_text()
    assert 'access = "root"\n' in shown
    assert 'resolve = "lookup"\n' in shown


def test_state_directory_of_the_service_manager_is_used(tmp_path: Path) -> None:
    environment = os.environ | {"STATE_DIRECTORY": str(tmp_path / "state"), "IMGFS_MOUNTPOINT": str(tmp_path / "mnt")}
    with Mounted(tmp_path) as mounted:
        done = subprocess.run([*IMGFS, "mount"], capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads((mounted.path / ".imgfs/state.json").read_bytes())["state"] == str(tmp_path / "state")


def by_signal(number: int) -> Callable[[Mounted, subprocess.Popen[bytes]], None]:
    """End the daemon by a signal."""
    return lambda mounted, process: process.send_signal(number)


WAYS: dict[str, Callable[[Mounted, subprocess.Popen[bytes]], object]] = {
    "SIGTERM": by_signal(signal.SIGTERM),
    "SIGINT": by_signal(signal.SIGINT),
    "imgfs umount": lambda mounted, process: mounted.stop(),
    "umount": lambda mounted, process: run("umount", mounted.path),
    "umount -l": lambda mounted, process: run("umount", "-l", mounted.path),
    "fusermount3": lambda mounted, process: run("fusermount3", "-u", mounted.path),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_end_is_clean_and_keeps_what_was_there(idle: Mounted, registry: FakeRegistry, way: str) -> None:
    name = add(registry)
    with foreground(idle) as process:
        assert idle.run("pull", name).returncode == 0
        WAYS[way](idle, process)
        assert process.wait(PATIENCE) == 0
    assert mount_at(str(idle.path)) is None
    assert list(idle.path.iterdir()) == []
    assert "Traceback" not in (idle.path.parent / "stderr").read_text()
    before = registry.requests()
    idle.start()
    read_whole(idle, name)
    assert registry.requests() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_the_middle_of_a_read_answers_the_reader(
    idle: Mounted, registry: FakeRegistry, number: signal.Signals
) -> None:
    name = add(registry)
    registry.fault(stall(after=100), "GET .*/blobs/", times=None)
    cat = ["cat", idle.rootfs(name) / "etc/box"]
    with foreground(idle) as process, subprocess.Popen(cat, stderr=subprocess.DEVNULL) as reader:
        assert registry.valve.wait_arrival()
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert reader.wait(PATIENCE) == 1
    assert mount_at(str(idle.path)) is None
    assert temporaries(idle.state) == []


def test_signal_while_a_file_is_open_detaches_in_the_end(idle: Mounted) -> None:
    with foreground(idle) as process, (idle.path / ".imgfs/version").open():
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert mount_at(str(idle.path)) is None


def test_umount_of_a_used_tree_is_busy_and_lazy_takes_it_away(idle: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    with foreground(idle) as process:
        with (idle.rootfs(name) / "noise").open("rb", buffering=0) as file:
            assert idle.run("umount", str(idle.path)).returncode == 7
            assert len(file.read(1000)) == 1000
            assert idle.run("umount", "--lazy", str(idle.path)).returncode == 0
            assert mount_at(str(idle.path)) is None
            file.seek(150_000)
            assert len(file.read()) == 150_000
        assert process.wait(PATIENCE) == 0


def test_umount_waits_a_moment_for_somebody_who_is_just_leaving(idle: Mounted) -> None:
    with foreground(idle) as process, subprocess.Popen(["sleep", "0.3"], cwd=idle.path / "images") as leaving:
        done = idle.run("umount", str(idle.path))
        assert (done.returncode, done.stderr) == (0, "")
        assert process.wait(PATIENCE) == 0
        assert leaving.wait() == 0


def test_mounting_again_while_somebody_keeps_the_old_tree_says_what_to_do(idle: Mounted) -> None:
    with foreground(idle) as process:
        with (idle.path / ".imgfs/version").open():
            run("umount", "-l", idle.path)
            done = idle.try_start()
            assert done.returncode == 7
            assert f"pid {process.pid} at {idle.path}, whose tree is unmounted" in done.stderr
        assert process.wait(PATIENCE) == 0
    idle.start()


def test_kill_leaves_a_dead_mount_that_the_next_start_takes_over(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    assert mounted.run("pull", name).returncode == 0
    assert mounted.run("tag", name, "mytool").returncode == 0
    config = (mounted.image(name) / "config.json").read_bytes()
    before = registry.requests()
    mounted.kill()
    with pytest.raises(OSError) as caught:
        os.listdir(mounted.path)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    mounted.start()
    assert sorted(mounted.run("ls", "-q").stdout.split()) == sorted([name, "mytool"])
    read_whole(mounted, "mytool")
    assert (mounted.image(name) / "config.json").read_bytes() == config
    assert registry.requests() == before


def test_kill_is_noticed_whatever_the_kernel_remembers(mounted: Mounted) -> None:
    mounted.path.stat()
    assert not is_dead(str(mounted.path))
    with (mounted.path / ".imgfs/version").open():
        mounted.path.stat()
        mounted.kill()
        assert is_dead(str(mounted.path))
        mounted.start()
        assert not is_dead(str(mounted.path))


def test_umount_takes_a_dead_mount_away(mounted: Mounted) -> None:
    mounted.path.stat()
    mounted.kill()
    mounted.stop()
    assert mount_at(str(mounted.path)) is None


def test_kill_in_the_middle_of_a_pull_leaves_nothing_behind(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    registry.fault(stall(after=100_000), f"GET .*/blobs/{BOX.layers[0].digest}", times=1)
    with subprocess.Popen(["cat", mounted.rootfs(name) / "etc/box"], stderr=subprocess.DEVNULL) as reader:
        assert registry.valve.wait_arrival()
        eventually(lambda: bool(temporaries(mounted.state)))
        mounted.kill()
        assert reader.wait(PATIENCE) == 1
    registry.valve.open()
    assert temporaries(mounted.state)
    mounted.start()
    assert temporaries(mounted.state) == []
    read_whole(mounted, name)
    eventually(lambda: temporaries(mounted.state) == [])


def test_second_daemon_on_a_state_is_told_who_holds_it(mounted: Mounted, tmp_path: Path) -> None:
    done = mounted.run("mount", str(tmp_path / "second"), "--state", str(mounted.state))
    assert done.returncode == 7
    assert f"pid {mounted.pid()} at {mounted.path}" in done.stderr
    assert "--state" in done.stderr
    assert mount_at(str(tmp_path / "second")) is None


def test_mount_over_a_live_mount_is_refused_and_harms_nobody(mounted: Mounted, tmp_path: Path) -> None:
    done = mounted.run("mount", str(mounted.path), "--state", str(tmp_path / "other"))
    assert done.returncode == 7
    assert "umount" in done.stderr
    assert mounted.pid() is not None


def test_two_states_serve_side_by_side(mounted: Mounted, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Mounted(tmp_path / "other") as other:
        other.start()
        assert other.pid() not in (None, mounted.pid())
        other.stop()
        assert mounted.pid() is not None


@pytest.mark.parametrize("below", ["", "state", "deep/state"])
def test_state_below_the_mountpoint_is_refused(tmp_path: Path, below: str) -> None:
    with Mounted(tmp_path) as mounted:
        mounted.path.mkdir()
        (tmp_path / "alias").symlink_to(mounted.path)
        for path in (mounted.path / below, tmp_path / "alias" / below):
            done = mounted.run("mount", str(mounted.path), "--state", str(path))
            assert done.returncode == 2
            assert "below the mountpoint" in done.stderr
        assert mount_at(str(mounted.path)) is None
        assert list(mounted.path.iterdir()) == []


def test_mountpoint_through_a_link_is_one_mount(tmp_path: Path) -> None:
    with Mounted(tmp_path) as mounted:
        mounted.path.mkdir()
        (tmp_path / "alias").symlink_to(mounted.path)
        state = str(mounted.state)
        assert mounted.run("mount", str(tmp_path / "alias"), "--state", state).returncode == 0
        assert mounted.run("mount", str(tmp_path / "alias"), "--state", f"{state}2").returncode == 7
        mounted.kill()
        assert mounted.run("mount", str(tmp_path / "alias"), "--state", state).returncode == 0
        assert mounted.run("umount", str(tmp_path / "alias")).returncode == 0
        assert mount_at(str(mounted.path)) is None


def test_state_that_cannot_be_made_is_told(idle: Mounted, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "ro", "none", idle.state)
    try:
        path = idle.state / "new"
        done = idle.run("mount", str(idle.path), "--state", str(path))
        assert done.returncode == 1
        assert f"imgfs: {path}" in done.stderr
        assert "read-only filesystem" in done.stderr
    finally:
        run("umount", idle.state)
    (tmp_path / "file").write_bytes(b"")
    assert idle.run("mount", str(idle.path), "--state", str(tmp_path / "file/state")).returncode == 2


def test_mountpoint_that_is_a_file_is_refused(idle: Mounted) -> None:
    idle.path.write_bytes(b"")
    done = idle.try_start()
    assert done.returncode == 2
    assert str(idle.path) in done.stderr


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('acess = "all"', "did you mean 'access'?"),
        ("zzz = 1", "known are access,"),
        ('access = "friends"', "expected root, group:NAME or all"),
        ('access = "group:no-such-group"', "no group 'no-such-group'"),
        ("access = 7", "access"),
        ('resolve = "never"', "resolve"),
        ('platform = "one/two/three/four"', "platform"),
        ("access =", "imgfs.toml"),
    ],
)
def test_config_that_is_wrong_is_a_usage_error(idle: Mounted, config: str, told: str) -> None:
    (idle.state / "imgfs.toml").write_text(config)
    done = idle.try_start()
    assert done.returncode == 2
    assert told in done.stderr
    assert mount_at(str(idle.path)) is None


def test_config_that_is_named_must_be_there(idle: Mounted, tmp_path: Path) -> None:
    done = idle.try_start("--config", str(tmp_path / "nothing.toml"))
    assert done.returncode in (2, 3)
    assert "nothing.toml" in done.stderr
    (tmp_path / "own.toml").write_text('resolve = "registered"')
    assert idle.try_start("--config", str(tmp_path / "own.toml")).returncode == 0
    assert 'resolve = "registered"' in (idle.path / ".imgfs/config").read_text()


def without_fuse(idle: Mounted, prepare: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Mount in a mount namespace whose /dev has little more than what `prepare` makes."""
    script = f'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && {prepare} && exec "$@"'
    mount = [*IMGFS, "mount", str(idle.path), "--state", str(idle.state)]
    command = [program("unshare"), "-m", program("sh"), "-c", script, "sh", *prefix, *mount]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_missing_fuse_device_says_what_to_do(idle: Mounted) -> None:
    done = without_fuse(idle, "true")
    assert done.returncode == 3
    assert "/dev/fuse: is missing; load the fuse module" in done.stderr


def test_fuse_device_that_may_not_be_opened_says_what_to_do(idle: Mounted) -> None:
    no_override = (program("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    done = without_fuse(idle, "mknod -m 000 /dev/fuse c 10 229", *no_override)
    assert done.returncode == 4
    assert "/dev/fuse: Permission denied; load the fuse module, or allow" in done.stderr


FIRST_START = [("fsync", 1), ("fdatasync", 2), ("mkdir", 5)]
PULL = [
    *(("fsync", number) for number in (1, 2, 3, 4, 5, 8)),
    *(("fdatasync", number) for number in (1, 2, 3, 5)),
    *(("rename", number) for number in (1, 2, 3)),
    *(("mkdir", number) for number in (3, 4)),
    *(("ftruncate", number) for number in (3, 4)),
    *(("unlink", number) for number in (2, 3)),
    ("link", 1),
]
"""System calls before which the daemon is killed; strace counts them per thread. The state directory exists already."""


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty state directory that a daemon has made."""
    directory = tmp_path_factory.mktemp("set-up")
    with Mounted(directory) as mounted:
        mounted.start()
        mounted.stop()
    return directory / "state"


@pytest.mark.parametrize(("call", "number"), PULL)
def test_whatever_a_kill_cuts_off_of_a_pull_the_next_start_serves_right(
    idle: Mounted, registry: FakeRegistry, set_up: Path, call: str, number: int
) -> None:
    shutil.copytree(set_up, idle.state, dirs_exist_ok=True)
    survive(idle, registry, call, number)


@pytest.mark.parametrize(("call", "number"), FIRST_START)
def test_whatever_a_kill_cuts_off_of_the_first_start_the_next_goes_well(
    idle: Mounted, registry: FakeRegistry, call: str, number: int
) -> None:
    survive(idle, registry, call, number)


def survive(mounted: Mounted, registry: FakeRegistry, call: str, number: int) -> None:
    """Start and pull until the kill, start again, and check what the daemon has promised."""
    name = add(registry)
    strace = ["-f", "--seccomp-bpf", "-qq", "-o", os.devnull, "-e", f"inject={call}:signal=KILL:when={number}"]
    with foreground(mounted, program("strace"), *strace) as traced:
        is_acknowledged = mounted.run("pull", name).returncode == 0
        if mounted.pid() is not None:
            mounted.kill()
        traced.wait(PATIENCE)
    registry.reset()
    mounted.start()
    assert temporaries(mounted.state) == []
    check_listed(mounted)
    read_whole(mounted, name)
    assert registry.requests() == 0 or not is_acknowledged


def check_listed(mounted: Mounted) -> None:
    """Assert that every listed blob has its digest."""
    for path in mounted.content.glob("sha256:*"):
        assert Digest.of(path.read_bytes()) == path.name
    for snapshot in mounted.snapshots.iterdir():
        for directory, _, files in os.walk(snapshot / "rootfs"):
            for file in files:
                Path(directory, file).read_bytes()
