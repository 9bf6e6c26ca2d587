"""What a child of the starter makes of itself, where its daemon and the caller differ."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import os, signal
from imgfs.entry.likeness import ignore_like
signal.signal(signal.SIGQUIT, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
ignore_like(os.getppid())
print(*(signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGQUIT, signal.SIGINT, signal.SIGUSR2)))
"""


def test_the_caller_says_which_signals_are_ignored_and_not_the_daemon() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert done.stdout == b"False False True\n"
