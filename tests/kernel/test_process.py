"""A process that the kernel kills when another process exits."""

from __future__ import annotations

import os
import signal

import pytest

from imgfs.kernel.process import die_with


def test_the_kernel_ends_who_lives_with_somebody_that_is_gone() -> None:
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


def test_nobody_begins_to_live_with_who_is_gone_already() -> None:
    life, theirs = os.pipe()
    os.close(theirs)
    with pytest.raises(ConnectionError):
        die_with(life)
    os.close(life)
