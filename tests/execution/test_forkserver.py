"""Commands that the fork server runs behave like commands that run by themselves; they are only faster."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from imgfs.cli.containers.site import facts_of
from imgfs.cli.tree import Tree
from imgfs.forkserver.client import run_on_fork_server
from imgfs.kernel.process import io_priority
from tests.execution.box import (
    PATIENCE,
    Box,
    boxed,
    fork_server,
    fork_server_processes,
    prepared_child,
    set_quirks,
    supervisors,
    until,
)
from tests.support.mounted import IMGFS

GROUP = Path("/sys/fs/cgroup/freezer/imgfs-test-caller")
WITHOUT_LARGE_PAGES = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A mount whose daemon may be killed."""
    with boxed(tmp_path_factory.mktemp("own")) as box:
        yield box


def begin(box: Box, id: str, *before: str) -> int:
    """Start a container in the background by a command line with this prefix, and return the pid of its supervisor."""
    words = [*before, *IMGFS, "run", "-d", "--name", id, "box", "sleep", "100"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{id}\n".encode(), b"")
    return int(box.record(id).lock.read_text().split()[1])


def is_forked(pid: int) -> bool:
    """Return whether the process is a child that the fork server forked."""
    return b"imgfs.forkserver.server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def ignored(pid: int) -> set[int]:
    """Return the signals that a process ignores."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mask = int(lines["SigIgn"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def descriptors(pid: int) -> set[str]:
    """Return the open descriptors of a process, by kind."""
    found: set[str] = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor was closed meanwhile
            found.add(os.readlink(path).partition(":")[0])
    return found


def test_the_first_command_starts_the_fork_server_and_it_runs_all_commands(box: Box) -> None:
    for id in ("first", "second"):
        assert is_forked(begin(box, id))
    assert fork_server(box.mount.path)


def test_the_prepared_child_runs_the_next_command_and_is_replaced_if_it_died(box: Box) -> None:
    begin(box, "calls")
    ready = until(lambda: prepared_child(box.mount.path))
    assert begin(box, "taken") in ready
    killed = until(lambda: prepared_child(box.mount.path))
    assert not set(killed) & set(ready)
    os.kill(killed[0], signal.SIGKILL)
    until(lambda: not set(killed) & set(fork_server_processes(box.mount.path)))
    pid = begin(box, "untaken")
    assert is_forked(pid)
    assert pid not in killed


def test_a_supervisor_holds_nothing_of_the_daemon_or_the_fork_server(box: Box) -> None:
    pid = begin(box, "held")
    log, lock = str(box.record("held").log), str(box.record("held").lock)
    expected = {"/dev/null", "socket", "pipe", "anon_inode", log, lock}
    until(lambda: descriptors(pid) == expected)  # at first the supervisor looks for the remains of earlier containers
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    assert int(status[3]) == pid  # the supervisor has its own session


def test_containers_outlive_the_daemon_and_its_fork_server(own: Box) -> None:
    pid = begin(own, "lasting")
    assert is_forked(pid)
    until(lambda: prepared_child(own.mount.path))
    own.mount.kill()
    until(lambda: not fork_server_processes(own.mount.path))
    assert own.record("lasting").status().status == "running"
    assert own.run("box", "true").returncode == 125
    own.mount.start()
    again = begin(own, "again")
    assert is_forked(again)
    own.mount.stop()
    until(lambda: not fork_server_processes(own.mount.path))
    assert not (own.mount.state / "forkserver").exists()
    assert supervisors(own.mount.path) == sorted([pid, again])
    own.mount.start()


def test_without_a_fork_server_commands_run_by_themselves(own: Box) -> None:
    begin(own, "before")
    process = fork_server(own.mount.path)
    assert process
    os.kill(process, signal.SIGSTOP)
    try:
        with subprocess.Popen([*IMGFS, "run", "box", "true"], env=own.environment) as waiting:
            until(lambda: "socket" in descriptors(waiting.pid))
            os.kill(process, signal.SIGKILL)
            assert waiting.wait(PATIENCE) == 0
    finally:
        until(lambda: not Path(f"/proc/{process}").exists())
    until(lambda: "the fork server failed" in own.mount.log())
    assert not is_forked(begin(own, "after"))


def test_inherited_attributes_are_the_callers(box: Box, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("host\n")
    limits = ("prlimit", "--nofile=333:4444", "nice", "-n", "5", "ionice", "-c", "3")
    script = 'umask 027; cd "$1"; shift; exec "$@"'
    words = [*IMGFS, "run", "-d", "--name", "alike", "-e", "ODD", "-v", "here:/here", "box", "sh", "-c"]
    subprocess.run(
        [*limits, "sh", "-c", script, "sh", str(tmp_path), *words, "cat /here; echo $ODD; sleep 100"],
        check=True,
        timeout=PATIENCE,
        env=box.environment | {"ODD": "a b"},
    )
    until(lambda: box.record("alike").log.read_bytes() == b"host\na b\n")
    (pid,) = supervisors(box.mount.path)
    assert is_forked(pid)
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (333, 4444)
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
    assert io_priority(pid) >> 13 == 3  # IOPRIO_CLASS_IDLE
    assert b"ODD=a b" not in Path(f"/proc/{pid}/environ").read_bytes()  # as at its start


def test_the_supervisor_is_in_the_callers_cgroups(box: Box) -> None:
    GROUP.mkdir()
    try:
        pid = begin(box, "grouped", "sh", "-c", f'echo 0 > {GROUP}/cgroup.procs; exec "$@"', "sh")
        assert is_forked(pid)
        assert f":freezer:/{GROUP.name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
    finally:
        box.take_away()
        until(lambda: not (GROUP / "cgroup.procs").read_text())
        GROUP.rmdir()


def test_the_login_uid_and_oom_score_are_the_callers(box: Box) -> None:
    script = 'echo 1234 > /proc/self/loginuid; echo 77 > /proc/self/oom_score_adj; exec "$@"'
    pid = begin(box, "login", "sh", "-c", script, "sh")
    assert is_forked(pid)
    assert Path(f"/proc/{pid}/loginuid").read_text() == "1234"
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "77\n"


@pytest.mark.parametrize(
    "before",
    [
        ("unshare", "--net"),
        ("unshare", "--uts"),
        ("setpriv", "--bounding-set=-sys_boot"),
        ("taskset", "1"),
        ("chrt", "--batch", "0"),
        ("setarch", "--addr-no-randomize"),
        ("sh", "-c", 'echo 0x1 > /proc/self/coredump_filter; exec "$@"', "sh"),
        (sys.executable, "-c", WITHOUT_LARGE_PAGES),
    ],
)
def test_a_caller_with_another_confinement_is_not_served(box: Box, before: tuple[str, ...]) -> None:
    begin(box, "plain")
    pid = begin(box, "confined", *before)
    assert not is_forked(pid)
    namespace = os.readlink(f"/proc/{pid}/ns/net")
    assert (namespace == os.readlink("/proc/self/ns/net")) is ("--net" not in before)


def test_the_child_ignores_the_callers_ignored_signals_and_ends_with_the_caller(faked: Box, runtime: Path) -> None:
    set_quirks(runtime, run="hang")
    words = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *IMGFS, "run", "-d", "--name", "deaf", "box", "true"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=faked.environment) as process:
        until(lambda: supervisors(faked.mount.path))
        assert any(signal.SIGINT in ignored(pid) for pid in fork_server_processes(faked.mount.path))
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    until(lambda: not supervisors(faked.mount.path))
    faked.assert_nothing_stays("deaf")


DIRECT = ("unshare", "--uts")
"""A prefix for commands that the fork server must not run."""


@pytest.mark.parametrize("before", [(), DIRECT])
def test_an_ignored_signal_is_not_passed_to_the_container(box: Box, before: tuple[str, ...]) -> None:
    script = "trap 'exit 9' USR1; trap 'echo hangup' HUP; touch /here/begun; while :; do sleep 0.05; done"
    here = f"{box.mount.state}:/here"
    words = [*before, *IMGFS, "run", "--rm", "--name", "ears", "-v", here, "box", "sh", "-c", script]
    begun = box.mount.state / "begun"
    ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *words]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, env=box.environment) as process:
        until(begun.exists)
        begun.unlink()
        until(lambda: box.record("ears").written_status().status == "running")  # until then a signal cancels the start
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=PATIENCE)[0] == b""
        assert process.returncode == 9


@pytest.mark.parametrize("before", [(), DIRECT])
def test_a_caller_that_ignores_SIGCHLD_receives_the_exit_code(box: Box, before: tuple[str, ...]) -> None:
    words = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", *before, *IMGFS, "run", "--rm", "box", "sh", "-c", "exit 7"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
    assert (done.returncode, done.stderr) == (7, b"")


TWICE = """
import sys
from imgfs.forkserver import client

class Twice(client.socket):
    def send(self, data):
        super().send(data)
        return super().send(data)

    def recv(self, size):
        try:
            return super().recv(size)
        except ConnectionResetError:  # the child closed with an unread message; its own message follows the error
            return super().recv(size)

client.socket = Twice
sys.exit(client.run_on_fork_server(sys.argv[1:]))
"""


def test_data_from_the_caller_is_not_taken_for_its_exit(box: Box) -> None:
    """The kernel may report new data after the data was read. To the child this looks like one more message."""
    words = [sys.executable, "-c", TWICE, IMGFS[0], "run", "--rm", "box", "sh", "-c", "exit 7"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
    assert (done.returncode, done.stderr) == (7, b"")


def test_help_is_the_same_as_without_a_fork_server(box: Box) -> None:
    helps = [[*before, *IMGFS, "run", "--help"] for before in ((), DIRECT)]
    served, direct = (subprocess.check_output(words, timeout=PATIENCE, env=box.environment) for words in helps)
    assert served == direct


def test_a_variable_without_a_name_does_no_harm(box: Box) -> None:
    words = ["env", "--unset=x", "=odd", *IMGFS, "run", "--rm", "box", "true"]
    assert subprocess.run(words, check=False, timeout=PATIENCE, env=box.environment).returncode == 0


def test_facts_of_one_daemon_are_not_reused_for_the_next_at_its_mountpoint(own: Box) -> None:
    tree = Tree(str(own.mount.path))
    facts = facts_of(tree)
    assert facts.are_of(tree)
    own.mount.kill()
    own.mount.start()
    given_again = os.stat(tree.path).st_dev, facts.mount[1]  # the kernel reuses device numbers
    assert not msgspec.structs.replace(facts, mount=given_again).are_of(tree)


def test_without_a_mount_no_fork_server_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGFS_MOUNTPOINT", str(tmp_path))
    assert run_on_fork_server(["imgfs", "run", "box"]) is None
    assert run_on_fork_server(["imgfs", "run", f"--mountpoint={tmp_path}/nowhere", "box"]) is None
