"""System call numbers by name."""

from __future__ import annotations

import ctypes
import os

from imgfs.kernel.syscalls import numbers_of


def test_a_number_is_the_one_that_the_kernel_knows() -> None:
    number = numbers_of(["getpid", "write"])["getpid"]
    assert ctypes.CDLL(None).syscall(number) == os.getpid()


def test_what_this_machine_does_not_have_is_below_zero() -> None:
    assert numbers_of(["nonsense"])["nonsense"] < 0


def test_without_libseccomp_none_is_known() -> None:
    assert numbers_of(["getpid"], library="libnothing.so.0") == {}
