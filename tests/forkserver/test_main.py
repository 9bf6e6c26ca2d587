"""The first lines of the program."""

from __future__ import annotations

import subprocess
import sys

LOADING = """
import builtins, sys
from imgfs.forkserver import main

real = builtins.__import__

def interrupted(name, *rest):
    if name == "imgfs.cli":
        raise KeyboardInterrupt
    return real(name, *rest)

builtins.__import__ = interrupted
sys.argv = ["imgfs", "ls"]
main()
"""


def test_ctrl_c_while_it_loads_is_130_and_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "imgfs: interrupted\n")
