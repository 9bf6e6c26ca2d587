"""A process that the kernel kills when another process exits."""

from __future__ import annotations

import os
import signal

import pytest

from imgfs.kernel.process import die_with


def test_the_kernel_kills_the_process_when_the_other_exits() -> None:
    (life, theirs), (told, telling) = os.pipe(), os.pipe()
    process = os.fork()
    if not process:
        os.close(theirs)
        die_with(life)
        os.write(telling, b"lives")
        while True:
            signal.pause()
    os.close(life)
    assert os.read(told, 5) == b"lives"
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.close(theirs)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    os.close(told)
    os.close(telling)


def test_die_with_raises_if_the_other_process_has_exited() -> None:
    life, theirs = os.pipe()
    os.close(theirs)
    with pytest.raises(ConnectionError):
        die_with(life)
    os.close(life)
