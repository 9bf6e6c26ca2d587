"""ps, exec, kill, wait, logs and delete, and the files of the tree, with running containers."""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgfs.execution.bundle.overrides import Overrides
from imgfs.execution.records.record import LOST
from tests.execution.box import PATIENCE, Box, supervisors, until
from tests.mount.scene import refused
from tests.support.mounted import IMGFS

TRAP = "trap 'exit 9' USR1 TERM; echo ready; while :; do sleep 0.05; done"


def at(box: Box, id: str) -> Path:
    """Return containers/<id>."""
    return box.mount.path / "containers" / id


def ready(box: Box, id: str, image: str = "box") -> None:
    """Start a container in the background that exits with 9 when asked to, and wait until it can be asked."""
    words = (TRAP,) if image == "service" else ("sh", "-c", TRAP)
    box.start(image, *words, id=id).control.close()
    until(lambda: (at(box, id) / "log").read_bytes() == b"ready\n")


def told(box: Box, *words: str, code: int = 0) -> str:
    """Assert that a command exits with `code`, and return its output."""
    done = box.imgfs(*words)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout.decode()


def test_a_container_is_shown_from_its_start_to_its_deletion(box: Box) -> None:
    ready(box, "life", "service")
    assert told(box, "ps", "-q") == "life\n"
    state = json.loads((at(box, "life") / "state.json").read_bytes())
    assert (state["status"], state["annotations"], state["image"]) == (
        "running",
        {"org.example.kind": "test"},
        "service",
    )
    assert int((at(box, "life") / "pid").read_text()) == state["pid"]
    assert os.path.samefile(at(box, "life") / "rootfs", box.rootfs("life"))
    with refused(errno.EBUSY):
        os.rmdir(at(box, "life"))
    with refused(errno.EBUSY):
        os.rmdir(box.rootfs("life").parent)
    told(box, "kill", "life")  # the image's StopSignal
    assert told(box, "wait", "life") == "9\n"
    assert told(box, "ps", "-q") == ""
    assert "exited with 9" in told(box, "ps", "-a")
    assert told(box, "logs", "life") == "ready\n"
    assert told(box, "delete", "life", code=9) == "9\n"
    assert told(box, "delete", "life", code=9) == "9\n"
    assert json.loads((box.mount.path / ".imgfs/deleted/containers/life").read_bytes())["exit_code"] == 9
    box.assert_nothing_stays("life")


def test_exec_passes_output_input_and_exit_code_exactly(box: Box) -> None:
    ready(box, "entered")
    done = box.imgfs(
        "exec", "-i", "-e", "A=b c", "-w", "/tmp", "entered", "sh", "-c", "cat; echo $A $FROM; pwd >&2", stdin=b"in\0\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\0\nb c image\n", b"/tmp\n")
    assert box.imgfs("exec", "entered", "cat", stdin=b"not passed on").stdout == b""
    for script, code in (("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
        told(box, "exec", "entered", "sh", "-c", script, code=code)
    for missing, code in (("no-such-program", 127), ("/etc/os-release", 126)):
        done = box.imgfs("exec", "entered", missing)
        assert (done.returncode, done.stdout, done.stderr.count(missing.encode())) == (code, b"", 1)
    told(box, "exec", "nobody", "true", code=125)


def test_exec_gives_a_terminal(box: Box) -> None:
    ready(box, "terminal")
    pid, master = pty.fork()
    if not pid:
        os.execvpe(
            IMGFS[0], [*IMGFS, "exec", "-it", "terminal", "sh", "-c", "tty; read a; echo got $a"], box.environment
        )
    said = b""
    typed = False
    while select.select([master], [], [], PATIENCE)[0]:
        try:
            said += os.read(master, 4096)
        except OSError:
            break
        if b"/dev/" in said and not typed:
            os.write(master, b"words\n")
            typed = True
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"got words\r\n" in said
    os.close(master)


def test_a_signal_to_exec_reaches_its_program(box: Box) -> None:
    ready(box, "signalled")
    words = [*IMGFS, "exec", "signalled", "sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=box.environment) as entered:
        assert entered.stdout is not None
        assert entered.stdout.readline() == b"up\n"
        entered.terminate()
        assert entered.wait(PATIENCE) == 5


def test_logs_are_followed_to_the_end(box: Box) -> None:
    ready(box, "followed")
    with subprocess.Popen([*IMGFS, "logs", "-f", "followed"], stdout=subprocess.PIPE, env=box.environment) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"ready\n"
        box.kill("followed", signal.SIGTERM)
        assert following.wait(PATIENCE) == 0


def test_a_full_log_is_rotated(faked: Box) -> None:
    started = faked.start("box", "sh", "-c", "seq 1 900; sleep 0.3; seq 901 1500", id="full")
    done = faked.imgfs("logs", "-f", "full")
    assert started.supervisor.wait(PATIENCE) == 0
    assert done.stdout.split()[-1] == b"1500"
    lines = told(faked, "logs", "full").split()
    assert lines == [str(number) for number in range(int(lines[0]), 1501)]
    assert told(faked, "logs", "-n", "2", "full") == "1499\n1500\n"
    started.control.close()


def test_without_a_supervisor_no_exit_code_is_invented(box: Box) -> None:
    ready(box, "left")
    (supervisor,) = supervisors(box.mount.path)
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not supervisors(box.mount.path))
    assert told(box, "ps", "-q") == "left\n"
    with refused(errno.EBUSY):
        os.rmdir(at(box, "left"))
    told(box, "exec", "left", "true")
    told(box, "kill", "-s", "KILL", "left")
    assert told(box, "wait", "left", code=1) == "unknown\n"
    assert LOST in (at(box, "left") / "status").read_text()
    assert told(box, "delete", "left", code=125) == "unknown\n"
    box.assert_nothing_stays("left")


def test_a_container_outlives_its_daemon_and_is_deleted_by_the_next_daemon(box: Box) -> None:
    ready(box, "lasting")
    box.mount.kill()
    done = box.imgfs("ps")
    assert (done.returncode, b"daemon has ended" in done.stderr) == (1, True)
    box.mount.start()
    assert told(box, "ps", "-q") == "lasting\n"
    told(box, "exec", "lasting", "touch", "/made")
    assert (at(box, "lasting") / "rootfs/made").exists()
    with refused(errno.EBUSY):
        os.rmdir(box.rootfs("lasting").parent)
    assert told(box, "delete", "-f", "lasting", code=137) == "137\n"
    box.assert_nothing_stays("lasting")


def test_a_container_with_rm_that_ended_without_a_daemon_is_deleted_by_the_next_daemon(box: Box) -> None:
    ready(box, "temporary")
    started = box.start("box", "sleep", "1000", id="unseen", remove=True)
    box.mount.kill()
    box.kill("unseen")
    started.control.close()
    until(lambda: len(supervisors(box.mount.path)) == 1)
    box.mount.start()
    until(lambda: sorted(os.listdir(at(box, "unseen").parent)) == ["temporary"])
    assert json.loads((box.mount.path / ".imgfs/deleted/containers/unseen").read_bytes())["signal"] == 9


def test_twenty_at_once_leave_nothing_behind(box: Box) -> None:
    ids = [f"crowd-{number}" for number in range(20)]

    def live(number: int) -> int:
        started = box.start(wish=Overrides(arguments=("sh", "-c", f"exit {number}")), id=ids[number])
        assert started.supervisor.wait(PATIENCE) == 0
        started.control.close()
        os.rmdir(at(box, started.id))
        kept = box.mount.path / ".imgfs/deleted/containers" / started.id
        return json.loads(kept.read_bytes())["exit_code"]

    with ThreadPoolExecutor(len(ids)) as threads:
        assert list(threads.map(live, range(len(ids)))) == list(range(len(ids)))
    box.assert_nothing_stays(*ids)


@pytest.mark.parametrize("words", [("ps",), ("wait", "x"), ("logs", "x"), ("delete", "x"), ("kill", "x")])
def test_without_a_mount_commands_report_that(tmp_path: Path, words: tuple[str, ...]) -> None:
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(tmp_path)}
    done = subprocess.run([*IMGFS, *words], capture_output=True, check=False, env=environment, timeout=PATIENCE)
    assert (done.returncode, b"no tree is mounted there" in done.stderr) == (1, True)
