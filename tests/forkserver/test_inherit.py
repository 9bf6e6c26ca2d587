"""The attributes that a child of the fork server takes from the caller and not from the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from imgfs.forkserver.inherit import root_of

PROGRAM = """
import os, signal
from imgfs.forkserver.inherit import inherit_ignored_signals
signal.signal(signal.SIGQUIT, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
inherit_ignored_signals(os.getppid())
print(*(signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGQUIT, signal.SIGINT, signal.SIGUSR2)))
"""


def test_ignored_signals_are_the_callers_and_not_the_daemons() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert done.stdout == b"False False True\n"


def test_a_bind_mount_of_the_root_is_another_root() -> None:
    other = "mount --bind / /mnt && exec chroot /mnt sh -c 'echo begun; exec sleep 100'"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", other], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"begun\n"
            theirs, own = root_of(process.pid), root_of("self")
        finally:
            process.kill()
    assert theirs[:2] == own[:2]
    assert theirs != own == root_of(os.getpid())
