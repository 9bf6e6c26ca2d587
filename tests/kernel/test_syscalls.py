"""System call numbers by name."""

from __future__ import annotations

import ctypes
import os

from imgfs.kernel.syscalls import numbers_of


def test_numbers_are_those_of_the_kernel() -> None:
    number = numbers_of(["getpid", "write"])["getpid"]
    assert ctypes.CDLL(None).syscall(number) == os.getpid()


def test_a_call_of_another_architecture_has_a_negative_number() -> None:
    assert numbers_of(["nonsense"])["nonsense"] < 0


def test_without_libseccomp_none_is_known() -> None:
    assert numbers_of(["getpid"], library="libnothing.so.0") == {}
