"""Service operation: messages to the service manager, mount(8) and fstab, and options of a mounted tree."""

from __future__ import annotations

import configparser
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from imgfs.cli import main
from imgfs.doctor import host
from imgfs.kernel.mounts import mount_at
from imgfs.lock import locked
from imgfs.testing.images import File, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.programs import run

UNIT = Path(__file__).parents[2] / "systemd/imgfs.service"
BOX = image([layer([File("hello", b"hello\n")])])
IN_A_NAMESPACE = """
set -e
mount -t tmpfs none "$(realpath /sbin)"
ln -s "$1" /sbin/mount.imgfs
mount -a -T "$2"
mount -a -T "$2"
cat "$3/.imgfs/config"
grep " $3 " /proc/self/mountinfo
umount "$3"
"""


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Mounted]:
    """A mount that the test starts itself."""
    with Mounted(tmp_path) as mounted:
        yield mounted


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(PATIENCE)
        yield one


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """mount.imgfs, as pip installs it."""
    path = tmp_path / "mount.imgfs"
    path.write_text(f"#!{sys.executable}\nfrom imgfs.cli.service.mount_helper import main\nmain()\n")
    path.chmod(0o755)
    return path


def serve(mounted: Mounted, **environment: str) -> subprocess.Popen[bytes]:
    command = [*IMGFS, "mount", "-f", str(mounted.path), "--state", str(mounted.state)]
    given = os.environ | {"NOTIFY_SOCKET": str(mounted.path.parent / "notify")} | environment
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=given)


def heard(manager: socket.socket, word: str) -> list[str]:
    """Return the first message that begins with `word`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        told = manager.recv(4096).decode().split("\n")
        if told[0] == word:
            return told
    raise AssertionError(f"{word}: was not told within {PATIENCE} s")


def test_manager_hears_why_it_does_not_start(idle: Mounted, manager: socket.socket) -> None:
    idle.state.mkdir(mode=0o700)
    with locked(idle.state, "for repair"), serve(idle) as process:
        status, number = manager.recv(4096).decode().split("\n")
        assert process.wait(PATIENCE) == 7
    assert "is in use by pid" in status
    assert number == f"ERRNO={errno.EBUSY}"


def test_manager_hears_of_ready_life_and_end(idle: Mounted, manager: socket.socket) -> None:
    with serve(idle, WATCHDOG_USEC="300000") as process:
        try:
            assert heard(manager, "READY=1") == ["READY=1", f"STATUS=Serving {idle.path}"]
            assert sorted(os.listdir(idle.path)) == [".imgfs", "containers", "content", "images", "snapshots"]
            heard(manager, "WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            assert heard(manager, "STOPPING=1")[1] == f"STATUS=Unmounting {idle.path}"
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert mount_at(str(idle.path)) is None


def test_helper_mounts_without_a_path_and_a_home(idle: Mounted, helper: Path, registry: FakeRegistry) -> None:
    BOX.add_to(registry, "box", "1")
    options = f"rw,state={idle.state},allow_other,noauto,_netdev,x-systemd.automount"
    done = subprocess.run([helper, "none", idle.path, "-o", options], env={}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert '# command line\naccess = "all"\n' in (idle.path / ".imgfs/config").read_text()
    assert (idle.rootfs(f"{registry.host}/box:1") / "hello").read_bytes() == b"hello\n"
    again = subprocess.run([helper, "none", idle.path, "-o", f"state={idle.state}2"], capture_output=True, check=False)
    assert again.returncode == 32
    assert again.stderr.startswith(b"mount.imgfs: ")
    idle.stop()


def test_read_only_takes_no_change_and_still_brings_in(idle: Mounted, registry: FakeRegistry) -> None:
    BOX.add_to(registry, "box", "1")
    name = f"{registry.host}/box:1"
    idle.start()
    assert idle.run("snapshot", "prepare", "work", name).returncode == 0
    idle.stop()
    assert idle.try_start("-o", "ro").returncode == 0
    assert (idle.rootfs(name) / "hello").read_bytes() == b"hello\n"
    work = idle.snapshots / "active/work/rootfs"
    assert (work / "hello").read_bytes() == b"hello\n"
    for change in (
        lambda: (work / "new").touch(),
        lambda: (idle.snapshots / "active/more").mkdir(),
        lambda: (idle.path / "images/mine").symlink_to("sha256:" + "0" * 64),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    idle.stop()  # with its views
    assert mount_at(str(idle.path)) is None
    idle.start()
    (work / "new").touch()
    idle.stop()


def test_mount_and_fstab_find_the_helper(idle: Mounted, helper: Path, tmp_path: Path) -> None:
    idle.path.mkdir()
    fstab = tmp_path / "fstab"
    fstab.write_text(f"none {idle.path} imgfs state={idle.state},nofail,_netdev,nosuid,log_level=debug,comment=x 0 0\n")
    done = run("unshare", "--mount", "sh", "-c", IN_A_NAMESPACE, "sh", helper, fstab, idle.path).decode()
    assert '# command line\nlog_level = "debug"\n' in done
    assert "nosuid,nodev" in done.splitlines()[-1]
    assert "fuse.imgfs none" in done.splitlines()[-1]
    assert "starting" in idle.log()


def test_options_of_a_mounted_tree_are_those_it_was_mounted_with(idle: Mounted) -> None:
    idle.state.mkdir(mode=0o700)
    (idle.state / "imgfs.toml").write_text('resolve = "registered"\n')
    assert idle.try_start("-o", "log_bytes=70000").returncode == 0
    (idle.state / "imgfs.toml").unlink()
    done = idle.run("config", "show", "--format", "json")
    found = {one["option"]: (one["value"], one["origin"]) for one in json.loads(done.stdout)}
    assert found["resolve"] == ("registered", f"{idle.state}/imgfs.toml:1")
    assert found["log_bytes"] == (70000, "command line")
    told = json.loads(idle.run("doctor", "--state", str(idle.state), "--format", "json").stdout)
    assert {one["subject"]: one["grade"] for one in told}[str(idle.path)] == "ok"
    idle.kill()
    dead = idle.run("doctor", "--state", str(idle.state))
    assert dead.returncode == 1
    assert f"FAIL  {idle.path}: is mounted but does not answer" in dead.stdout
    assert f"`imgfs umount {idle.path}`" in dead.stdout


def test_tree_that_hangs_is_told_and_does_not_hang_the_doctor(idle: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    idle.start()
    pid = idle.pid()
    assert pid is not None
    monkeypatch.setattr(host, "PATIENCE", 0.3)
    os.kill(pid, signal.SIGSTOP)
    try:
        told = host.tree(str(idle.path))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (told.grade, told.what) == ("fail", "does not answer within 0.3 s")
    idle.stop()


def test_log_shown_goes_back_before_the_file_that_was_begun_last(idle: Mounted) -> None:
    idle.state.mkdir(mode=0o700)
    (idle.state / "log.1").write_text('{"event": "before"}\n')
    idle.start()
    shown = [json.loads(line)["event"] for line in (idle.path / ".imgfs/log").read_text().splitlines()]
    assert shown[:2] == ["before", "starting"]
    idle.stop()


def test_unit_starts_what_there_is_and_makes_no_namespace() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue] - as documented
    unit.read(UNIT)
    service = unit["Service"]
    name, *arguments = service["ExecStart"].split()
    assert name == "imgfs"
    command = main.get_command(click.Context(main), arguments[0])
    assert command is not None
    given = command.make_context("mount", arguments[1:]).params
    assert (given["foreground"], given["mountpoint"]) == (True, Path("/var/lib/imgfs"))
    assert service["Type"] == "notify"
    assert service["StateDirectory"] == "imgfs-state"
    kept_out = ("Private", "Protect", "Read", "Inaccessible", "Root", "NoNew", "SystemCall", "Capability", "Restrict")
    assert [key for key in service if key.startswith(kept_out) and not key.startswith("Restart")] == []
