"""Commands that the fork server does: nobody can tell, but by how soon they are done."""

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
    """Start one in the background by the command line, behind other words; the pid of its supervisor."""
    words = [*before, *IMGFS, "run", "-d", "--name", id, "box", "sleep", "100"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{id}\n".encode(), b"")
    return int(box.record(id).lock.read_text().split()[1])


def is_forked(pid: int) -> bool:
    """Whether the fork server's child became that process."""
    return b"imgfs.forkserver.server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def ignored(pid: int) -> set[int]:
    """The signals that a process ignores."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mask = int(lines["SigIgn"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def descriptors(pid: int) -> set[str]:
    """What a process has open, by kind."""
    found: set[str] = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            found.add(os.readlink(path).partition(":")[0])
    return found


def test_the_first_command_begins_it_and_all_are_done_by_it(box: Box) -> None:
    for id in ("first", "second"):
        assert is_forked(begin(box, id))
    assert fork_server(box.mount.path)


def test_what_is_ready_does_the_next_command_and_where_it_is_gone_another_one_does(box: Box) -> None:
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
    until(lambda: descriptors(pid) == expected)  # at first it looks for what others left
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    assert int(status[3]) == pid  # a session of its own


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


def test_without_a_fork_server_commands_do_it_themselves(own: Box) -> None:
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


def test_what_a_child_inherits_comes_along(box: Box, tmp_path: Path) -> None:
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
    assert b"ODD=a b" not in Path(f"/proc/{pid}/environ").read_bytes()  # the kernel shows what it began with


def test_it_is_in_the_callers_cgroups(box: Box) -> None:
    GROUP.mkdir()
    try:
        pid = begin(box, "grouped", "sh", "-c", f'echo 0 > {GROUP}/cgroup.procs; exec "$@"', "sh")
        assert is_forked(pid)
        assert f":freezer:/{GROUP.name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
    finally:
        box.take_away()
        until(lambda: not (GROUP / "cgroup.procs").read_text())
        GROUP.rmdir()


def test_it_is_of_the_callers_login_and_as_dear_to_the_kernel(box: Box) -> None:
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
def test_for_who_is_confined_otherwise_it_does_nothing(box: Box, before: tuple[str, ...]) -> None:
    begin(box, "plain")
    pid = begin(box, "confined", *before)
    assert not is_forked(pid)
    namespace = os.readlink(f"/proc/{pid}/ns/net")
    assert (namespace == os.readlink("/proc/self/ns/net")) is ("--net" not in before)


def test_what_the_caller_ignores_is_ignored_and_what_kills_him_ends_it(faked: Box, runtime: Path) -> None:
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
"""In front of a command that the fork server is not to do."""


@pytest.mark.parametrize("before", [(), DIRECT])
def test_what_the_caller_ignores_is_not_passed_on(box: Box, before: tuple[str, ...]) -> None:
    script = "trap 'exit 9' USR1; trap 'echo hangup' HUP; touch /here/begun; while :; do sleep 0.05; done"
    here = f"{box.mount.state}:/here"
    words = [*before, *IMGFS, "run", "--rm", "--name", "ears", "-v", here, "box", "sh", "-c", script]
    begun = box.mount.state / "begun"
    ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *words]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, env=box.environment) as process:
        until(begun.exists)
        begun.unlink()
        until(lambda: box.record("ears").written_status().status == "running")  # before, a signal calls the start off
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=PATIENCE)[0] == b""
        assert process.returncode == 9


@pytest.mark.parametrize("before", [(), DIRECT])
def test_who_ignores_how_children_end_is_told_how_a_program_ended(box: Box, before: tuple[str, ...]) -> None:
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


def test_what_the_caller_says_is_not_taken_for_his_end(box: Box) -> None:
    """The kernel may tell that something came after it was read: then it looks like one word more."""
    words = [sys.executable, "-c", TWICE, IMGFS[0], "run", "--rm", "box", "sh", "-c", "exit 7"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
    assert (done.returncode, done.stderr) == (7, b"")


def test_its_help_is_that_of_the_command(box: Box) -> None:
    helps = [[*before, *IMGFS, "run", "--help"] for before in ((), DIRECT)]
    served, direct = (subprocess.check_output(words, timeout=PATIENCE, env=box.environment) for words in helps)
    assert served == direct


def test_a_variable_without_a_name_harms_nobody(box: Box) -> None:
    words = ["env", "--unset=x", "=odd", *IMGFS, "run", "--rm", "box", "true"]
    assert subprocess.run(words, check=False, timeout=PATIENCE, env=box.environment).returncode == 0


def test_what_one_daemon_said_is_not_believed_of_the_next_at_that_place(own: Box) -> None:
    tree = Tree(str(own.mount.path))
    facts = facts_of(tree)
    assert facts.are_of(tree)
    own.mount.kill()
    own.mount.start()
    given_again = os.stat(tree.path).st_dev, facts.mount[1]  # as the kernel does with numbers of mounts that are gone
    assert not msgspec.structs.replace(facts, mount=given_again).are_of(tree)


def test_nobody_is_asked_where_nothing_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGFS_MOUNTPOINT", str(tmp_path))
    assert run_on_fork_server(["imgfs", "run", "box"]) is None
    assert run_on_fork_server(["imgfs", "run", f"--mountpoint={tmp_path}/nowhere", "box"]) is None
