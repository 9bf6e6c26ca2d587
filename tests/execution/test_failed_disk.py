"""The disk of the state directory fails while containers run: no command hangs, and no status is invented."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.execution.records.record import LOST
from tests.execution.box import PATIENCE, Box, images, supervisors, until
from tests.mount.preparing import small_disk, unmount
from tests.mount.scene import refused
from tests.support.mounted import IMGFS, Mounted
from tests.support.programs import program

SIZE = 64 << 20
READ_ONLY = "the state directory lies on a read-only filesystem; remount it writable"
UNKEPT = "its end is recorded as soon as the disk accepts it, while the process imgfs:"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Box]:
    """A mount whose state directory is on its own disk."""
    with small_disk(tmp_path, SIZE) as disk, Mounted(tmp_path) as mount:
        subprocess.run([program("mount"), "-o", "remount,errors=remount-ro", disk], check=True)
        mount.state = disk / "state"
        (tmp_path / "layout").mkdir()
        for name, made in images():
            if name == "box":
                made.write_layout(tmp_path / "layout", name)
        mount.start()
        mount.run("import", str(tmp_path / "layout"))
        box = Box(mount)
        yield box
        box.take_away()
        until(lambda: not supervisors(mount.path))
        mount.stop()


def begin(box: Box, *words: str) -> subprocess.Popen[str]:
    """Start a foreground container and wait until it runs. It exits with 3 once a file `end` is beside the disk."""
    script = "while [ ! -e /beside/end ]; do sleep 0.05; done; echo bye; exit 3"
    volume = f"{box.mount.state.parents[1]}:/beside"
    command = [*IMGFS, "run", *words, "-v", volume, "box", "sh", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=box.environment)
    until(lambda: box.imgfs("exec", words[-1], "true").returncode == 0)
    return process


def end(box: Box) -> None:
    (box.mount.state.parents[1] / "end").touch()


def fail(disk: Path) -> None:
    """Make ext4 find an error. It then refuses every change."""
    device = os.path.basename(subprocess.check_output([program("findmnt"), "-no", "SOURCE", disk], text=True).strip())
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    with refused(errno.EROFS):
        (disk / "probe").mkdir()


def assert_told(box: Box, id: str, process: subprocess.Popen[str]) -> None:
    """Assert that the container has ended, and that the foreground command and all waiters received how it ended."""
    out, told = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (3, "bye\n")
    assert READ_ONLY in told
    assert f"{UNKEPT}{id}" in told
    waited = box.imgfs("wait", id)
    assert (waited.returncode, waited.stdout) == (0, b"3\n")
    assert UNKEPT.encode() in waited.stderr
    killed = box.imgfs("kill", id)
    assert (killed.returncode, b"has ended" in killed.stderr) == (1, True), killed


def test_on_a_failed_disk_containers_end_and_commands_return(own: Box) -> None:
    disk = own.mount.state.parent
    assert own.run("--name", "ended", "box", "sh", "-c", "exit 4").returncode == 4
    assert own.run("-d", "--name", "stays", "box", "sleep", "100").returncode == 0
    front, goes = begin(own, "--name", "front"), begin(own, "--rm", "--name", "goes")
    fail(disk)
    for words in (("run", "box", "true"), ("run", "-d", "--rm", "box", "true"), ("start", "ended")):
        done = own.imgfs(*words)
        assert (done.returncode, READ_ONLY in done.stderr.decode()) == (125, True), done
    deleted = own.imgfs("delete", "ended")
    assert (deleted.returncode, READ_ONLY in deleted.stderr.decode()) == (1, True)
    assert own.imgfs("exec", "stays", "echo", "hi").stdout == b"hi\n"
    end(own)
    assert_told(own, "front", front)
    assert_told(own, "goes", goes)
    forced = own.imgfs("delete", "-f", "stays")
    assert (forced.returncode, b"has ended, but its status is not written yet" in forced.stderr) == (7, True), forced
    assert own.imgfs("ps", "-aq").stdout.split() == [b"ended", b"front", b"goes", b"stays"]
    again(own, disk)
    for id in ("front", "stays"):
        assert own.record(id).status().reason == LOST
    assert own.imgfs("delete", "front").returncode == 125
    until(lambda: own.imgfs("ps", "-aq").stdout.split() == [b"ended", b"stays"])
    assert own.imgfs("start", "-a", "ended").returncode == 4
    assert own.imgfs("delete", "ended").returncode == 4
    assert own.run("--rm", "box", "echo", "all is well").stdout == b"all is well\n"


def again(box: Box, disk: Path) -> None:
    """Unmount a failed disk, end the processes that use it, and mount it again."""
    for pid in supervisors(box.mount.path):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not supervisors(box.mount.path))
    box.mount.stop()
    unmount(disk, "-R")
    subprocess.run([program("mount"), "-o", "loop", disk.with_name("disk.ext4"), disk], check=True)
    box.mount.start()
