"""How a child of the fork server exits when it cannot run the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKING = """
import os, socket, sys
from imgfs.forkserver import child

def run_request(*_):
    raise getattr(__builtins__, sys.argv[1])("a word on it")

child.run_request = run_request
listener, asking = socket.socketpair()
assert child.Child(listener, None, is_prepared=bool(int(sys.argv[2]))).hand_over(asking)
os.wait()
"""


@pytest.mark.parametrize("is_prepared", ["0", "1"])
@pytest.mark.parametrize(("error", "is_told"), [("ValueError", True), ("OSError", False), ("KeyboardInterrupt", False)])
def test_the_child_reports_only_programming_errors(error: str, is_told: bool, is_prepared: str) -> None:
    done = subprocess.run([sys.executable, "-c", ASKING, error, is_prepared], capture_output=True, check=False)
    assert (done.returncode, b"a word on it" in done.stderr) == (0, is_told)
