"""A killed daemon exits although one of its threads waits in the daemon's own tree; all other waiters are released."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.kernel.guard import abort
from imgfs.kernel.mounts import mount_at, unmount

PATIENCE = 20

DAEMON = """
import ctypes, os, struct, sys, threading
from contextlib import nullcontext
from imgfs.kernel.guard import guarded
point, guarding = sys.argv[1], sys.argv[2] == "guarded"
with guarded(point) if guarding else nullcontext():
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    assert ctypes.CDLL(None).mount(b"test", point.encode(), b"fuse.imgfs", 0, options) == 0
    unique, = struct.unpack_from("Q", os.read(device, 1 << 20), 8)
    greeting = struct.pack("IIIIHHII", 7, 31, 0, 0, 12, 9, 4096, 1)
    os.write(device, struct.pack("IiQ", 80, 0, unique) + greeting + bytes(36))
    threading.Thread(target=os.path.exists, args=[point + "/mine"], daemon=True).start()
    os.read(device, 1 << 20)  # the question is taken, and never answered
    print("waiting", flush=True)
    os.read(0, 1)
"""


@pytest.fixture
def point(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path)
    abort(str(tmp_path))
    while mount_at(str(tmp_path)):
        unmount(str(tmp_path), detach=True)


def start(point: str, how: str) -> subprocess.Popen[bytes]:
    """Start a daemon with a thread that waits in the daemon's own mount."""
    command = [sys.executable, "-c", DAEMON, point, how]
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert made.stdout
    assert made.stdout.readline() == b"waiting\n"
    return made


def dies(process: subprocess.Popen[bytes], within: float) -> bool:
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)


def test_a_killed_guarded_daemon_exits_and_its_mount_is_dead(point: str) -> None:
    with start(point, "guarded") as daemon:
        daemon.send_signal(signal.SIGKILL)
        assert dies(daemon, PATIENCE)
        with pytest.raises(OSError) as caught:
            os.stat(f"{point}/others")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert mount_at(point)


def test_an_unguarded_daemon_hangs(point: str) -> None:
    """If this test fails, the kernel has changed and the guard is no longer needed."""
    with start(point, "alone") as daemon:
        daemon.send_signal(signal.SIGKILL)
        assert not dies(daemon, 0.2)
        abort(point)
        assert dies(daemon, PATIENCE)
