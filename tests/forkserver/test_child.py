"""How a child of the starter ends that cannot do what is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKING = """
import os, socket, sys
from imgfs.forkserver import child

def serve_one(*_):
    raise getattr(__builtins__, sys.argv[1])("a word on it")

child.serve_one = serve_one
listener, asking = socket.socketpair()
assert child.Child(listener, None, is_spare=bool(int(sys.argv[2]))).give(asking)
os.wait()
"""


@pytest.mark.parametrize("is_spare", ["0", "1"])
@pytest.mark.parametrize(("error", "is_told"), [("ValueError", True), ("OSError", False), ("KeyboardInterrupt", False)])
def test_of_its_own_mistakes_it_tells(error: str, is_told: bool, is_spare: str) -> None:
    done = subprocess.run([sys.executable, "-c", ASKING, error, is_spare], capture_output=True, check=False)
    assert (done.returncode, b"a word on it" in done.stderr) == (0, is_told)
