"""Runtimes that hang, crash, refuse or write nothing, and processes killed at a start: reported, and nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from imgfs.errors import ImgfsError, NoSpace
from imgfs.execution.bundle.overrides import Overrides
from imgfs.execution.records.record import InstalledRuntime
from imgfs.execution.start import CallerStreams, Site, StartOptions, start_new
from tests.content.full_disk import fill, small_disk
from tests.execution.box import PATIENCE, Box, boxed, calls, fake_runtime, set_quirks, supervisors, until
from tests.support.mounted import IMGFS


@pytest.mark.parametrize(
    ("command", "quirk", "told"),
    [
        ("run", "hang", r"runtime fake: `run` did not finish within 1.5 s and was killed"),
        ("run", "late", r"runtime fake: `run` did not finish within 1.5 s and was killed"),
        ("run", "crash", r"runtime fake: run: no error message \(signal 9\)"),
        ("run", "silent", r"runtime fake: run: no error message \(exit code 3\)"),
        ("run", "no such cgroup", r"runtime fake: run: no such cgroup"),
    ],
)
def test_a_failing_runtime_is_reported(faked: Box, runtime: Path, command: str, quirk: str, told: str) -> None:
    set_quirks(runtime, **{command: quirk})
    with pytest.raises(ImgfsError, match=told):
        faked.start("box", "sleep", "86399", id="one")
    until(lambda: not supervisors(faked.mount.path))
    faked.assert_nothing_stays("one")
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if _words(path) == [b"sleep", b"86399", b""]]


def test_a_runtime_that_cannot_delete_costs_no_status(faked: Box, runtime: Path) -> None:
    set_quirks(runtime, delete="busy")
    status = faked.ended(faked.start("box", "sh", "-c", "exit 3", id="two"))
    assert (status.status, status.exit_code) == ("stopped", 3)
    set_quirks(runtime)
    faked.take_away()
    faked.assert_nothing_stays("two")


def test_a_container_with_rm_is_gone_before_its_runtime_has_deleted_it(faked: Box, runtime: Path) -> None:
    set_quirks(runtime, delete="hang")
    for code in (3, 4):
        done = faked.run("--rm", "--name", "eleven", "box", "sh", "-c", f"exit {code}")
        assert (done.returncode, done.stderr) == (code, b"")
        assert os.listdir(faked.mount.path / "containers") == faked.snapshots() == []
        kept = faked.records.find_deleted("eleven")
        assert kept is not None
        assert kept.status.exit_code == code
        until(lambda: calls(runtime)[-1].startswith("delete "))
        for pid in (*supervisors(faked.mount.path), *_running(runtime)):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not supervisors(faked.mount.path))
        assert len(faked.records.gone()) == code - 2
    set_quirks(runtime)
    assert faked.run("--rm", "box", "true").returncode == 0
    faked.assert_nothing_stays("eleven")


def test_a_missing_runtime_is_reported(faked: Box) -> None:
    site = faked.site
    gone = Site(site.mountpoint, site.state, [InstalledRuntime("gone", "/nowhere/gone")], site.log_bytes, site.deadline)
    with pytest.raises(ImgfsError, match="runtime gone: /nowhere/gone does not exist; install it again"):
        start_new(gone, faked.source("box"), Overrides(), StartOptions(detach=True), CallerStreams())
    faked.assert_nothing_stays()


def test_the_next_runtime_is_used_if_the_first_refuses_this_host(faked: Box, tmp_path: Path) -> None:
    refusing = fake_runtime(tmp_path / "refusing", run="cgroups in hybrid mode not supported")
    site = faked.site
    both = [InstalledRuntime("first", str(refusing)), *site.runtimes]
    wide = Site(site.mountpoint, site.state, both, site.log_bytes, site.deadline)
    started = start_new(
        wide, faked.source("box"), Overrides(arguments=("true",)), StartOptions("three", detach=True), CallerStreams()
    )
    told = "runtime first: run: cgroups in hybrid mode not supported; fake is used instead until the next boot"
    assert started.notes == (told,)
    assert faked.record("three").container().runtime == site.runtimes[0]
    assert "hybrid mode" in (faked.records.runtime_root / "refused.json").read_text()
    faked.ended(started)
    # A missing program does not mean that the runtime refuses the host.
    asked = calls(refusing)
    with pytest.raises(ImgfsError, match="not found"):
        start_new(
            site,
            faked.source("box"),
            Overrides(arguments=("nothing",)),
            StartOptions("four", detach=True),
            CallerStreams(),
        )
    assert calls(refusing) == asked


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_command_killed_during_the_start_leaves_nothing(
    faked: Box, runtime: Path, number: signal.Signals, code: int
) -> None:
    set_quirks(runtime, run="hang")
    before = len(calls(runtime))
    with subprocess.Popen(
        [*IMGFS, "run", "--name", "five", "box", "true"], stderr=subprocess.PIPE, env=faked.environment
    ) as process:
        until(lambda: len(calls(runtime)) > before)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert said == (b"imgfs: runtime fake: `run` was cancelled\n" if number == signal.SIGINT else b"")
    until(lambda: not supervisors(faked.mount.path))
    faked.assert_nothing_stays("five")


def test_a_runtime_killed_during_the_start_leaves_nothing(faked: Box, runtime: Path) -> None:
    set_quirks(runtime, run="hang")
    before = len(calls(runtime))
    command = [*IMGFS, "run", "--name", "six", "box", "true"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=faked.environment) as process:
        until(lambda: len(calls(runtime)) > before)
        until(lambda: [os.kill(pid, signal.SIGKILL) or pid for pid in _running(runtime)])
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (125, b"imgfs: runtime fake: run: no error message (signal 9)\n")
    faked.assert_nothing_stays("six")


def test_a_supervisor_killed_during_the_start_leaves_nothing(faked: Box, runtime: Path) -> None:
    set_quirks(runtime, run="hang")
    before = len(calls(runtime))
    command = [*IMGFS, "run", "--name", "ten", "box", "true"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=faked.environment) as process:
        until(lambda: len(calls(runtime)) > before)
        for pid in supervisors(faked.mount.path):
            os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (
        125,
        b"imgfs: container ten: its supervisor exited unexpectedly; see the kernel log\n",
    )
    faked.assert_nothing_stays("ten")
    for pid in _running(runtime):
        os.kill(pid, signal.SIGKILL)


def test_log_is_bounded(faked: Box) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    faked.ended(faked.start("box", "sh", "-c", script, id="seven"))
    log = faked.record("seven").log
    older = log.with_name("log.1").read_bytes()
    assert len(older) == 4096
    assert "".join(f"line {number}\n" for number in range(2000)).encode().endswith(older + log.read_bytes())


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    runtime = fake_runtime(tmp_path / "runtime")
    with small_disk(tmp_path / "disk", 32 << 20) as disk, boxed(disk, _config(runtime)) as box:
        source, site = box.source("box"), box.site
        filler = fill(disk)
        with pytest.raises(ImgfsError) as caught:
            start_new(site, source, Overrides(arguments=("true",)), StartOptions("eight", detach=True), CallerStreams())
        assert caught.value.errno == NoSpace.errno
        filler.unlink()
        box.assert_nothing_stays("eight")


def test_a_full_disk_at_the_end_loses_output_but_not_the_status(tmp_path: Path) -> None:
    runtime = fake_runtime(tmp_path / "runtime", delete="busy")  # so that the runtime frees no space
    with small_disk(tmp_path / "disk", 32 << 20) as disk, boxed(disk, _config(runtime)) as box:
        script = f"while [ ! -e {tmp_path}/end ]; do sleep 0.02; done; echo lost; exit 4"
        started = box.start("box", "sh", "-c", script, id="nine")
        filler = fill(disk)
        (tmp_path / "end").touch()
        with pytest.raises(subprocess.TimeoutExpired):
            started.supervisor.wait(1)
        assert box.record("nine").written_status().status == "running"
        filler.unlink()
        assert box.ended(started).exit_code == 4
        status = box.record("nine").status()
        assert (status.exit_code, status.reason) == (4, "5 bytes of its output were lost because the disk refused them")
        set_quirks(runtime)


def _config(runtime: Path) -> str:
    return f'[plugins.execution.oci]\nruntime = "{runtime}"\n'


def _words(path: Path) -> list[bytes]:
    """Return the command line of a process, empty if the process has gone."""
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def _running(runtime: Path) -> list[int]:
    """Return the pids of the fake runtime's own processes."""
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.fsencode(runtime) in _words(path)[:3]]
    return [int(path.parent.name) for path in found]
