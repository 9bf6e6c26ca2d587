"""The host's own seccomp profile, tested in a container by a program that makes one call and exits with its errno."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from imgfs.kernel.abi import runs_x32
from imgfs.oci.platform import local_platform
from tests.execution.box import Box
from tests.execution.caller import make_caller

GETPID, PERF_EVENT_OPEN, NOBODYS = 39, 298, 1000
OLD_GETPID, X32 = 20, 1 << 30
KILLED = 128 + 31
"""The exit code of a kill by SIGSYS."""

pytestmark = pytest.mark.skipif(local_platform().architecture != "amd64", reason="the program is of that machine")


def inside(box: Box, program: Path) -> int:
    """Return the exit code of the program in a container."""
    return box.run("--rm", "-v", f"{program}:/caller:ro", "box", "/caller").returncode


@pytest.mark.parametrize(
    ("number", "expected"), [(GETPID, 0), (PERF_EVENT_OPEN, errno.EPERM), (NOBODYS, errno.ENOSYS)], ids=str
)
def test_calls_are_allowed_or_refused_or_unknown(box: Box, tmp_path: Path, number: int, expected: int) -> None:
    assert inside(box, make_caller(tmp_path / "caller", number)) == expected


def test_calls_of_32_bit_programs_behave_as_outside(box: Box, tmp_path: Path) -> None:
    program = make_caller(tmp_path / "caller", OLD_GETPID, is_32_bit=True)
    outside = subprocess.run([program], check=False).returncode
    assert inside(box, program) == (outside if outside >= 0 else 128 - outside)


def test_x32_is_allowed_if_the_kernel_has_it_and_else_kills_the_program(box: Box, tmp_path: Path) -> None:
    assert inside(box, make_caller(tmp_path / "caller", X32 | GETPID)) == (0 if runs_x32() else KILLED)
