"""Which ABIs of programs the kernel executes."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from imgfs.kernel import abi

X32_GETPID = 1 << 30 | 39


def test_x32_is_reported_if_the_kernel_has_x32_calls() -> None:
    assert abi.runs_x32() is (ctypes.CDLL(None).syscall(X32_GETPID) == os.getpid())


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOEXEC, False), (errno.EACCES, True), (errno.EPERM, True)])
def test_only_enoexec_means_no_x32_support(monkeypatch: pytest.MonkeyPatch, code: int, expected: bool) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_spawn", refuse)
    assert abi.runs_x32() is expected


def test_x32_is_assumed_if_no_program_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert abi.runs_x32()
