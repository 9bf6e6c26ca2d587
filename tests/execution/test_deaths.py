"""Whichever process dies, the final state of a container is known, and nothing is invented."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from imgfs.execution.records.record import LOST
from tests.execution.box import Box, boxed, supervisors, until
from tests.support.programs import program

GROUP = Path("/sys/fs/cgroup/pids/imgfs-test-full")
COUNT = "i=0; while true; do i=$((i+1)); echo $i > /now; echo $i; sleep 0.05; done"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A mount whose daemon may be killed."""
    with boxed(tmp_path_factory.mktemp("own")) as box:
        yield box


def goes_on(box: Box, id: str) -> None:
    """Assert that a container still writes to its log."""
    record = box.record(id)
    before = record.log.stat().st_size
    until(lambda: record.log.stat().st_size > before)
    assert record.status().status == "running"


def inside(box: Box, id: str, *command: str) -> str:
    """Run a command in a container, by its runtime."""
    words = [
        program("runc"),
        "--root",
        str(box.records.runtime_root),
        "exec",
        box.record(id).container().runtime_id,
        *command,
    ]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout


def test_a_container_outlives_stop_and_death_of_the_daemon(own: Box) -> None:
    own.start("box", "sh", "-c", COUNT, id="one")
    goes_on(own, "one")
    own.mount.stop()
    goes_on(own, "one")
    assert inside(own, "one", "cat", "/etc/os-release").startswith("ID=imgfs-test")
    own.mount.start()
    until(lambda: (own.rootfs("one") / "now").read_text())
    own.mount.kill()
    goes_on(own, "one")
    assert inside(own, "one", "cat", "/usr/share/greeting") == "upper\n"
    own.mount.start()
    assert (own.rootfs("one") / "usr/share/greeting").read_text() == "upper\n"
    (own.rootfs("one") / "from-outside").write_text("seen")
    assert inside(own, "one", "cat", "/from-outside") == "seen"
    with pytest.raises(OSError, match="busy"):
        own.rootfs("one").parent.rmdir()
    own.kill("one")
    until(lambda: own.record("one").status().status == "stopped")
    assert own.record("one").status().exit_code == 137
    own.take_away()
    own.assert_nothing_stays("one")


def test_an_end_without_a_daemon_is_known(own: Box) -> None:
    started = own.start("box", "sh", "-c", "while [ ! -e /end ]; do sleep 0.02; done; exit 9", id="two", remove=True)
    own.mount.kill()
    inside(own, "two", "touch", "/end")
    status = own.ended(started)
    assert (status.status, status.exit_code) == ("stopped", 9)
    own.mount.start()
    own.take_away()
    own.assert_nothing_stays("two")


def test_a_killed_process_is_reported_with_its_signal(box: Box) -> None:
    started = box.start("box", "sleep", "100", id="three")
    pid = box.record("three").status().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    status = box.ended(started)
    assert (status.exit_code, status.signal, status.oom) == (137, 9, False)


def test_a_killed_supervisor_leaves_a_running_process_and_no_exit_code(box: Box) -> None:
    started = box.start("box", "sh", "-c", COUNT, id="four")
    record = box.record("four")
    running = record.status()
    started.supervisor.send_signal(signal.SIGKILL)
    started.supervisor.wait()
    assert not supervisors(box.mount.path)
    assert record.status() == running
    assert running.pid
    os.kill(running.pid, signal.SIGKILL)
    lost = until(lambda: (status := record.status()).status == "stopped" and status)
    assert (lost.exit_code, lost.signal, lost.finished, lost.reason) == (None, None, None, LOST)
    assert lost.started == running.started
    (box.mount.path / "containers/four").rmdir()
    kept = box.records.find_deleted("four")
    assert kept is not None
    assert kept.status == lost
    box.assert_nothing_stays("four")


def test_a_terminated_supervisor_sends_the_stop_signal_to_the_program(box: Box) -> None:
    script = 'trap "echo asked; exit 6" USR1; echo ready; while true; do sleep 0.02; done'
    started = box.start("service", script, id="five")
    until(lambda: box.record("five").log.read_bytes() == b"ready\n")
    started.supervisor.send_signal(signal.SIGHUP)
    started.supervisor.send_signal(signal.SIGTERM)
    assert box.ended(started).exit_code == 6
    assert box.record("five").log.read_bytes() == b"ready\nasked\n"


@pytest.mark.parametrize("place", ["where it was", "elsewhere"])
def test_the_next_start_removes_what_a_killed_start_left(box: Box, place: str) -> None:
    kept = box.start("box", "sleep", "100", id="six")
    made = box.record("six").container()
    key = "seven-00000000"
    (box.mount.snapshots / "active" / key).mkdir()  # no record yet: the start above may still be collecting
    record = box.records.make()
    os.close(record.take_lock())
    mountpoint = made.mountpoint if place == "where it was" else "/where/the/tree/was/then"
    record.write_container(msgspec.structs.replace(made, snapshot=key, mountpoint=mountpoint))
    gone = box.records.directory / ".gone-x"
    gone.mkdir()
    box.ended(box.start("box", "sleep", "1", id="eight", remove=True))
    until(lambda: not record.path.exists() and not gone.exists())
    assert box.snapshots() == [made.snapshot]
    kept.control.close()


def test_a_restarted_container_uses_the_new_mountpoint(box: Box) -> None:
    box.ended(box.start("box", "sh", "-c", "exit 5", id="moved"))
    record = box.record("moved")
    record.write_container(
        msgspec.structs.replace(record.container(), mountpoint="/where/the/tree/was/then", remove=True)
    )
    done = box.imgfs("start", "-a", "moved")
    assert (done.returncode, done.stderr) == (5, b"")
    kept = box.records.find_deleted("moved")
    assert kept is not None
    assert kept.container.mountpoint == str(box.mount.path)
    box.assert_nothing_stays("moved")


def test_a_malformed_message_is_refused_and_the_container_lives(box: Box) -> None:
    box.start("box", "sleep", "100", id="nine")
    for message in ({}, {"do": "dance"}, {"do": "kill", "signal": "x"}, {"do": "kill", "signal": 10**9}):
        with pytest.raises(Exception, match="control: "):
            box.ask("nine", message)
    with pytest.raises(Exception, match="ioctl"):
        box.ask("nine", {"do": "resize", "rows": 1, "columns": 1})
    assert box.record("nine").status().status == "running"


def test_the_final_status_is_kept_at_the_limit_of_processes(box: Box) -> None:
    started = box.start("box", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", id="full")
    until(lambda: box.record("full").log.read_bytes() == b"ready\n")
    (pid,) = supervisors(box.mount.path)
    GROUP.mkdir()
    try:
        (GROUP / "pids.max").write_text("1")
        (GROUP / "cgroup.procs").write_text(str(pid))
        box.kill("full", signal.SIGTERM)
        assert box.ended(started).exit_code == 9
        assert box.record("full").status().exit_code == 9
    finally:
        box.take_away()
        until(lambda: not (GROUP / "cgroup.procs").read_text())
        GROUP.rmdir()
