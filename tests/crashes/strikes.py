"""A daemon under strace: the Nth call of a kind in one of its threads is refused, or the daemon is killed there."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.mount.scene import until
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.programs import program

STORAGE_CALLS = (
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "link",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "ftruncate",
    "fallocate",
    "chmod",
    "fchmod",
)
"""Calls that change the state directory."""
CALLS = (*STORAGE_CALLS, "writev", "openat", "fsmount", "move_mount", "umount2")
"""Also the calls that answer the kernel (writev) or mount."""

QUICKLY = ("--seccomp-bpf",)
"""Only the calls that are traced cost time."""

_LINE = re.compile(r"(\d+) +(\w+)\(")


@contextmanager
def traced(mount: Mounted, *options: str) -> Generator[subprocess.Popen[bytes]]:
    """Run the daemon in the foreground under strace. It answers in the block, unless it is already dead.

    The daemon is killed at the end of the block.
    """
    command = [program("strace"), "-f", "-qq", *options, *IMGFS]
    command += ["mount", "-f", str(mount.path), "--state", str(mount.state)]
    said = said_by(mount).open("wb")
    with said, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said) as tracer:
        try:
            until(lambda: tracer.poll() is not None or (os.path.ismount(mount.path) and mount.pid() is not None))
            yield tracer
        finally:
            kill(mount)
            tracer.wait(PATIENCE)


def said_by(mount: Mounted) -> Path:
    """The stderr of the last traced daemon: its log, and the reason if it did not start."""
    return mount.path.parent / "stderr"


def killing(call: str, number: int) -> list[str]:
    """Options of strace: SIGKILL before the `number`th `call` of a thread.

    Not with --seccomp-bpf, which loses the kill.
    """
    return ["-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]


def refusing(call: str, error: str, number: int) -> list[str]:
    """Options of strace: fail the `number`th `call` of each thread with `error`."""
    return [*QUICKLY, "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}"]


def counting(file: Path) -> list[str]:
    """Options of strace: write every call that could be struck to `file`."""
    return [*QUICKLY, "-o", str(file), "-e", f"trace={','.join(CALLS)}"]


def counted(file: Path) -> Counter[str]:
    """Return how often the busiest thread made each call."""
    threads: Counter[tuple[str, str]] = Counter()
    for line in file.read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            threads[found[1], found[2]] += 1
    most: Counter[str] = Counter()
    for (_, call), count in threads.items():
        most[call] = max(most[call], count)
    return most


def kill(mount: Mounted) -> bool:
    """kill -9 the daemon and wait until it is dead. Return whether it lived until then."""
    pid = mount.pid() if os.path.ismount(mount.path) else None
    return pid is not None and kill_process(pid)


def kill_process(pid: int) -> bool:
    """Like `kill`, for a daemon that may not answer any more."""
    try:
        daemon = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        assert select.select([daemon], [], [], PATIENCE)[0], "the daemon cannot die"
    except ProcessLookupError:
        return False
    finally:
        os.close(daemon)
    return True
