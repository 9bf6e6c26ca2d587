"""`imgfs run` as a user runs it, with a real runtime on a real mount."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from imgfs.execution.bundle.overrides import Overrides
from imgfs.execution.start import CallerStreams, StartOptions, start_new
from tests.execution.box import PATIENCE, Box, until
from tests.support.mounted import IMGFS


def test_output_and_exit_code_pass_and_only_the_final_status_stays(box: Box) -> None:
    done = box.run("--rm", "--name", "one", "box", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    box.assert_nothing_stays("one")
    kept = json.loads((box.records.deleted / "one.json").read_text())
    assert (kept["id"], kept["exit_code"], kept["signal"], kept["image"]) == ("one", 7, None, "box")
    assert kept["created"] < kept["started"] < kept["finished"] < kept["deleted"]


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [("nothing", 127, b"executable file not found"), ("/etc/passwd", 126, b"permission denied")],
)
def test_an_unknown_command_has_a_shells_exit_code_and_leaves_no_container(
    box: Box, command: str, code: int, told: bytes
) -> None:
    done = box.run("--name", "two", "box", command)
    assert (done.returncode, done.stdout) == (code, b"")
    assert told in done.stderr
    box.assert_nothing_stays("two")


def test_a_refused_execve_has_a_shells_exit_code_and_one_error(box: Box, tmp_path: Path) -> None:
    odd = {"text": ("text\n", 126), "empty": ("", 126), "lost": ("#!/bin/no\n", 127), "directory": ("#!/etc\n", 126)}
    for name, (text, _) in odd.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    volume = ("-v", f"{tmp_path}:/odd")
    assert box.run("-d", "--name", "open", *volume, "box", "sleep", "1000").returncode == 0
    for name, (_, code) in odd.items():
        for words in (("run", "--rm", *volume, "box"), ("exec", "open")):
            done = box.imgfs(*words, f"/odd/{name}")
            assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (code, b"", 1), (
                words,
                name,
                done.stderr,
            )


def test_an_argument_that_the_kernel_refuses_is_126_too(box: Box) -> None:
    started = box.start("box", "true", "x" * (1 << 17), id="long")
    status = box.ended(started)
    assert (status.exit_code, status.signal) == (126, None)
    assert status.reason == "the kernel refused to execute it: exec /bin/true: argument list too long"
    assert box.record("long").log.read_bytes().count(b"\n") == 1
    assert box.imgfs("wait", "long").stdout == b"126\n"
    assert box.imgfs("start", "-a", "long").returncode == 126
    assert box.run("--rm", "box", "sh", "-c", "exit 1").returncode == 1


def test_a_program_named_like_the_runtimes_process_was_not_refused(box: Box) -> None:
    script = "printf 'runc:[2:INIT]' > /proc/self/comm; echo no such file >&2; exit 3"
    done = box.run("--rm", "box", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (3, b"no such file\n")


def test_environment_user_directory_and_host_name(box: Box) -> None:
    script = "echo $FROM $NEW $PASSED $HOSTNAME $HOME; hostname; id -u; id -g; pwd; umask; ls -ld ."
    words = ("-e", "NEW=a b", "-e", "PASSED", "-u", "nobody:7", "-w", "/var/made", "--name", "three")
    done = subprocess.run(
        [*IMGFS, "run", "--rm", *words, "box", "sh", "-c", script.replace("hostname", "busybox hostname")],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
        env=box.environment | {"PASSED": "on"},
    )
    lines = done.stdout.decode().splitlines()
    assert lines[:6] == ["image a b on three /", "three", "65534", "7", "/var/made", "0022"]
    assert lines[6].startswith("drwxr-xr-x")


def test_the_image_sets_command_user_and_directory(box: Box) -> None:
    done = box.run("--rm", "service")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"served\n65534\n/srv/made\n", b"")
    assert box.run("--rm", "up").stdout == b"/up\n"


def test_volumes_and_a_read_only_rootfs(box: Box, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("host\n")
    script = "cat /data/there; echo new > /data/new; echo x > /locked/x; echo y > /y; true"
    volumes = ("-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/locked:ro", "--read-only")
    done = box.run("--rm", *volumes, "box", "sh", "-c", script)
    assert done.stdout == b"host\n"
    assert done.stderr.count(b"Read-only file system") == 2
    assert (tmp_path / "new").read_text() == "new\n"
    assert sorted(os.listdir(tmp_path)) == ["new", "there"]


def test_system_calls_are_filtered_by_the_profile_of_the_host_or_another_or_none(box: Box, tmp_path: Path) -> None:
    wish = Overrides(arguments=("sh", "-c", "busybox grep ^Seccomp: /proc/self/status; mkdir /made"))
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errno": "EXDEV"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    said: dict[str, str] = {}
    for chosen in ("default", "none", str(profile)):
        site, id = msgspec.structs.replace(box.site, seccomp=chosen), f"filtered-{len(said)}"
        box.ended(start_new(site, box.source("box"), wish, StartOptions(id, detach=True), CallerStreams()))
        said[chosen] = box.record(id).log.read_text()
    assert said["default"] == "Seccomp:\t2\n"
    assert said["none"] == "Seccomp:\t0\n"
    assert said[str(profile)].startswith("Seccomp:\t2\n")
    assert "Invalid cross-device link" in said[str(profile)]


def test_network_is_its_own_or_the_hosts(box: Box) -> None:
    none = box.run("--rm", "box", "sh", "-c", "ls /sys/class/net; busybox ip addr show lo").stdout
    assert none.startswith(b"lo\n")
    assert b"UP" in none
    host = box.run("--rm", "--net", "host", "box", "sh", "-c", "ls -l /proc/self/ns/net").stdout
    assert os.readlink("/proc/self/ns/net").encode() in host


def test_stdin_passes_whole_and_ends(box: Box) -> None:
    data = os.urandom(1 << 20)
    assert box.run("-i", "--rm", "box", "sh", "-c", "cat", stdin=data).stdout == data
    assert box.run("--rm", "box", "sh", "-c", "cat", stdin=data).stdout == b""


def test_program_whose_reader_has_gone_ends_as_in_a_shell(box: Box) -> None:
    command = [*IMGFS, "run", "-i", "--rm", "--name", "yes", "box", "busybox", "yes"]
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1; echo ${PIPESTATUS[0]}', "bash", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=PATIENCE,
        env=box.environment,
    )
    first, code = done.stdout.split()
    assert (first, code != b"0") == (b"y", True)
    box.assert_nothing_stays("yes")


def test_a_detached_container_is_listed_logged_and_restarted(box: Box) -> None:
    script = "echo n >> /n; wc -l < /n; echo said >&2; sleep 100"
    assert box.run("-d", "--name", "four", "box", "sh", "-c", script).stdout == b"four\n"
    record = box.record("four")
    until(lambda: b"said" in record.log.read_bytes())
    status = record.status()
    assert status.status == "running"
    assert status.pid
    assert box.run("--name", "four", "box").returncode == 125
    busy = box.imgfs("start", "four")
    assert (busy.returncode, b"is running" in busy.stderr) == (125, True)
    box.kill("four")
    until(lambda: not record.is_supervised())
    ended = record.status()
    assert (ended.status, ended.exit_code, ended.signal, ended.pid) == ("stopped", 137, 9, None)
    assert ended.reason == "ended by signal 9 (SIGKILL)"
    assert (box.rootfs("four") / "n").read_text() == "n\n"
    assert box.imgfs("start", "four").stdout == b"four\n"
    until(lambda: record.log.read_bytes() == b"1\nsaid\n2\nsaid\n")
    box.kill("four")


@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_container_whose_id_cannot_be_printed_still_runs(box: Box, *, stderr_too: bool) -> None:
    """As with podman and docker: otherwise the caller believes that no container runs."""
    name = f"untold-{stderr_too}"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*IMGFS, "run", "-d", "--name", name, "box", "true"],
            stdout=full,
            stderr=full if stderr_too else subprocess.PIPE,
            check=False,
            env=box.environment,
        )
    assert done.returncode == 0
    if not stderr_too:
        assert done.stderr == (
            b"imgfs: container %b: has started, but its ID cannot be written to stdout: No space left on device\n"
            % name.encode()
        )
    assert box.imgfs("wait", name).stdout == b"0\n"


def test_foreground_start_exits_with_the_containers_code(box: Box) -> None:
    box.ended(box.start("box", "sh", "-c", "echo again; exit 3", id="five"))
    done = box.imgfs("start", "-a", "five")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"again\n", b"")
    missing = box.imgfs("start", "nobody")
    assert (missing.returncode, b"does not exist" in missing.stderr) == (125, True)


def test_a_container_runs_with_closed_standard_streams(box: Box) -> None:
    for closed in ("1>&-", "0<&-", "1>&- 2>&- 0<&-"):
        command = f'exec "$@" {closed}'
        words = [*IMGFS, "run", "-i", "--rm", "box", "sh", "-c", "cat; echo out; echo err >&2; exit 6"]
        done = subprocess.run(["sh", "-c", command, "sh", *words], check=False, timeout=PATIENCE, env=box.environment)
        assert done.returncode == 6, closed


def test_signals_to_the_command_reach_the_container(box: Box) -> None:
    script = 'trap "echo caught; exit 5" TERM; echo ready; while true; do sleep 0.05; done'
    command = [*IMGFS, "run", "--rm", "box", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=box.environment) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"caught\n"
        assert process.wait(PATIENCE) == 5


def test_a_vanished_reader_does_not_end_the_container(box: Box) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 4"
    command = [*IMGFS, "run", "--name", "six", "box", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=box.environment) as process:
        assert process.stdout
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 4
    assert box.record("six").log.read_bytes().endswith(b"line 2999\n")


def test_an_out_of_memory_kill_is_reported(box: Box) -> None:
    hungry = "a=x; while true; do a=$a$a$a$a; done"
    started = box.start(wish=Overrides(arguments=("sh", "-c", hungry), memory=12 << 20))
    status = box.ended(started)
    assert status.oom
    assert status.reason.endswith("the kernel killed a process because memory ran out")
    assert status.exit_code != 0


def test_usage_is_125_too(box: Box) -> None:
    for words in (("--net", "bridge", "box"), ("--nonsense", "box"), ()):
        done = box.run(*words)
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"Usage: " in done.stderr


def test_an_ordinary_user_gets_an_error(box: Box) -> None:
    command = ["setpriv", "--reuid=65534", "--clear-groups", *IMGFS, "run", "box"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
    assert (done.returncode, b"only root can start them" in done.stderr) == (125, True)
