"""The commands as a user runs them: processes against a real mount, a real daemon and a registry on loopback."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.testing.faults import close, stall, status, wrong_bytes
from imgfs.testing.images import ARM64, File, Image, image, index, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.programs import free_port

BOX = image([layer([File("etc/box", b"1" * 5000)]), layer([File("etc/more", os.urandom(70_000))], "none")])
NEXT = image([layer([File("etc/box", b"2")])])
ARM = image([layer([File("etc/box", b"arm")])], platform=ARM64)
AT_ONCE = 1
"""Seconds that a user who pressed Ctrl-C waits at most."""
BLOB = "GET .*/blobs/"


def add(registry: FakeRegistry, repository: str = "box", tag: str = "1", built: Image = BOX) -> str:
    """Serve an image and return its full name."""
    built.add_to(registry, repository, tag)
    return f"{registry.host}/{repository}:{tag}"


@contextmanager
def started(mounted: Mounted, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """A command that runs; it is gone afterwards."""
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(mounted.path)}
    process = subprocess.Popen(
        [*IMGFS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_pull_brings_all_of_an_image_and_a_second_pull_asks_nobody(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    done = mounted.run("pull", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{BOX.digest}\n", "")
    [row] = json.loads(mounted.run("ls", "--format", "json").stdout)
    assert (row["name"], row["digest"], row["complete"]) == (name, BOX.digest, True)
    asked = registry.requests()
    assert mounted.run("pull", BOX.digest).stdout == f"{BOX.digest}\n"
    assert mounted.run("pull", name).returncode == 0
    assert registry.requests() == asked


def test_refresh_asks_what_the_name_stands_for_now(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    mounted.run("pull", name)
    add(registry, built=NEXT)
    assert mounted.run("pull", name).stdout == f"{BOX.digest}\n"
    assert mounted.run("pull", "--refresh", name).stdout == f"{NEXT.digest}\n"


def test_inspect_fetches_documents_and_no_layer(mounted: Mounted, registry: FakeRegistry) -> None:
    both = index([image(BOX.layers), ARM])
    both.add_to(registry, "box", "1")
    found = json.loads(mounted.run("inspect", f"{registry.host}/box:1").stdout)
    assert found["digest"] == both.digest
    assert found["platforms"] == ["linux/amd64", "linux/arm64/v8"]
    assert [one["digest"] for one in found["layers"]] == [one.digest for one in BOX.layers]
    other = json.loads(mounted.run("inspect", "--platform", "linux/arm64", f"{registry.host}/box:1").stdout)
    assert other["manifest"] == json.loads(ARM.document)
    assert {path.rpartition("/")[2] for path in (request.path for request in registry.log)}.isdisjoint(
        one.digest for one in (*BOX.layers, *ARM.layers)
    )


def test_ls_status_and_rm_ask_no_registry(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    for arguments in (("ls",), ("status",), ("status", name), ("rm", name)):
        mounted.run(*arguments)
    assert registry.requests() == 0


def test_status_tells_what_is_here_before_and_after(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    mounted.run("inspect", name)
    before = json.loads(mounted.run("status", name, "--format", "json").stdout)
    assert [part["state"] for part in before["parts"]] == ["local", "local", "absent", "absent"]
    mounted.run("pull", name)
    assert json.loads(mounted.run("status", "--format", "json").stdout)["images"][0]["complete"]
    assert "complete  yes" in mounted.run("status", name).stdout


def test_tagged_name_is_an_image_and_rm_takes_only_that_name(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    mounted.run("pull", name)
    assert mounted.run("tag", name, "mytool").returncode == 0
    assert (mounted.rootfs("mytool") / "etc/box").read_bytes() == b"1" * 5000
    assert mounted.run("status", "mytool").returncode == 0
    assert mounted.run("rm", "mytool").returncode == 0
    assert mounted.run("ls", "-q").stdout == f"{name}\n"
    assert mounted.run("status", "mytool").returncode == 3


def test_tag_moves_a_name_and_refuses_what_is_none(mounted: Mounted, registry: FakeRegistry) -> None:
    first, second = add(registry), add(registry, tag="2", built=NEXT)
    mounted.run("tag", first, "mytool")
    assert mounted.run("tag", second, "mytool").returncode == 0
    assert os.readlink(mounted.image("mytool")) == NEXT.digest
    refused = mounted.run("tag", first, "..")
    assert refused.returncode == 2
    assert "expected host/repository:tag or a single word" in refused.stderr


@pytest.mark.parametrize("command", ["pull", "inspect"])
def test_missing_image_is_3_in_the_registrys_words(mounted: Mounted, registry: FakeRegistry, command: str) -> None:
    done = mounted.run(command, f"{registry.host}/nope:1")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{registry.host}/nope:1" in done.stderr
    assert "404" in done.stderr
    assert str(mounted.path / ".imgfs/log") in done.stderr


def test_denied_is_4(mounted: Mounted, registry: FakeRegistry) -> None:
    registry.fault(status(403), "manifests", times=None)
    assert mounted.run("pull", add(registry)).returncode == 4


def test_registry_that_is_down_is_5(mounted: Mounted) -> None:
    done = mounted.run("pull", f"127.0.0.1:{free_port()}/box:1")
    assert (done.returncode, done.stdout) == (5, "")
    assert "cannot be reached" in done.stderr


def test_registry_that_hangs_up_on_a_layer_is_5_and_says_where_more_is(
    mounted: Mounted, registry: FakeRegistry
) -> None:
    name = add(registry)
    registry.fault(close(), BLOB, times=None)
    done = mounted.run("pull", name)
    assert done.returncode == 5
    assert f"`imgfs status {name}`" in done.stderr


def test_wrong_bytes_are_6_and_name_the_blob(mounted: Mounted, registry: FakeRegistry) -> None:
    name = add(registry)
    wrong = BOX.layers[1].digest
    registry.fault(wrong_bytes(), f"{BLOB}{wrong}", times=None)
    done = mounted.run("pull", name)
    assert (done.returncode, done.stdout) == (6, "")
    assert wrong in done.stderr
    assert wrong in mounted.run("status", name).stderr + mounted.run("status", "--format", "json", name).stdout


def test_ctrl_c_on_a_stalled_pull_is_130_at_once_and_the_mount_serves_on(
    mounted: Mounted, registry: FakeRegistry
) -> None:
    name = add(registry)
    registry.fault(stall(10), f"{BLOB}{BOX.layers[1].digest}")
    with started(mounted, "pull", name) as process:
        assert registry.valve.wait_arrival()
        process.send_signal(signal.SIGINT)
        output, complaint = process.communicate(timeout=AT_ONCE)
    assert (process.returncode, output, complaint) == (130, "", "imgfs: interrupted\n")
    registry.release()
    assert mounted.run("pull", name).returncode == 0


def test_ctrl_c_on_a_stalled_lookup_is_130(mounted: Mounted, registry: FakeRegistry) -> None:
    registry.fault(stall(), "manifests")
    with started(mounted, "pull", add(registry)) as process:
        assert registry.valve.wait_arrival()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_while_a_pull_stalls_the_image_can_be_listed_and_a_second_pull_interrupted(
    mounted: Mounted, registry: FakeRegistry
) -> None:
    name = add(registry)
    registry.fault(stall(10), f"{BLOB}{BOX.layers[1].digest}")
    with started(mounted, "pull", name) as first, started(mounted, "pull", name) as second:
        assert registry.valve.wait_arrival()
        listed = subprocess.run(
            ["ls", mounted.path / "images" / BOX.digest], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
        assert "rootfs" in listed.stdout
        assert "loading" in mounted.run("status", name).stdout
        while not _waits(second):
            os.sched_yield()
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=PATIENCE)
        assert second.returncode == 130
        registry.release()
        assert first.communicate(timeout=PATIENCE)[0] == f"{BOX.digest}\n"


def test_progress_is_drawn_on_a_terminal_and_the_digest_goes_to_stdout(
    mounted: Mounted, registry: FakeRegistry
) -> None:
    name = add(registry)
    ours, theirs = os.openpty()
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(mounted.path), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*IMGFS, "pull", name], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = _everything(ours)
    assert process.communicate(timeout=PATIENCE)[0] == f"{BOX.digest}\n".encode()
    assert process.returncode == 0
    assert all(one.digest.hex[:12].encode() in drawn for one in BOX.layers)
    assert b"complete" in drawn


def test_daemon_that_dies_under_a_pull_is_1(mounted: Mounted, registry: FakeRegistry) -> None:
    registry.fault(stall(10), f"{BLOB}{BOX.layers[1].digest}")
    with started(mounted, "pull", add(registry)) as process:
        assert registry.valve.wait_arrival()
        mounted.kill()
        output, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (1, "")
    assert "the daemon of the mount has ended" in complaint


def test_daemon_that_stops_sets_a_pull_free(mounted: Mounted, registry: FakeRegistry) -> None:
    registry.fault(stall(10), f"{BLOB}{BOX.layers[1].digest}")
    pid = mounted.pid()
    assert pid is not None
    with started(mounted, "pull", add(registry)) as process:
        assert registry.valve.wait_arrival()
        os.kill(pid, signal.SIGTERM)
        _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "the daemon is stopping" in complaint


def test_dead_daemon_is_1_and_the_failure_says_what_to_do(mounted: Mounted) -> None:
    mounted.kill()
    done = mounted.run("ls")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"`imgfs mount {mounted.path}` mounts it again" in done.stderr


def test_mount_over_a_live_one_and_a_state_in_use_are_7(mounted: Mounted, tmp_path: Path) -> None:
    assert mounted.try_start().returncode == 7
    done = mounted.run("mount", str(tmp_path / "second"), "--state", str(mounted.state))
    assert done.returncode == 7
    assert "imgfs mount -f" in done.stderr


def test_umount_of_nothing_is_3_and_of_a_used_tree_7(mounted: Mounted, tmp_path: Path) -> None:
    assert mounted.run("umount", str(tmp_path / "nothing")).returncode == 3
    with (mounted.path / ".imgfs/version").open():
        assert mounted.run("umount", str(mounted.path)).returncode == 7
    assert mounted.run("umount", str(mounted.path)).returncode == 0


def _waits(process: subprocess.Popen[str]) -> bool:
    """Whether a pull has started the thread that waits."""
    return len(os.listdir(f"/proc/{process.pid}/task")) > 1


def _everything(terminal: int) -> bytes:
    """What is written to a terminal until its last writer is gone (then reading it is EIO)."""
    drawn = b""
    try:
        while select.select([terminal], [], [], PATIENCE)[0]:
            piece = os.read(terminal, 1 << 16)
            if not piece:
                break
            drawn += piece
    except OSError:
        pass
    finally:
        os.close(terminal)
    return drawn


def test_layers_that_cannot_be_merged_are_6_and_status_says_why(mounted: Mounted, registry: FakeRegistry) -> None:
    image([layer([File("file")]), layer([File("file"), File("file/below")])]).add_to(registry, "odd", "1")
    name = f"{registry.host}/odd:1"
    for _ in range(2):
        done = mounted.run("pull", name)
        assert (done.returncode, done.stdout) == (6, "")
        assert "file/below" in done.stderr
    assert "file/below" in json.loads(mounted.run("status", name, "--format", "json").stdout)["error"]
    assert "file/below" in mounted.run("status", name).stdout
    assert registry.requests("blob") == 3
