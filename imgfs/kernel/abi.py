"""Whether the kernel executes programs of the x32 ABI."""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress

_X86_64 = 62
"""EM_X86_64 of elf(5). In a file of 32 bits it says x32: long mode with short pointers."""
_ADDRESS = 0x400000
_HEADER, _SEGMENT = 52, 32
"""Bytes of an ELF header and of a program header, of 32 bits."""
_LOADED, _READABLE_EXECUTABLE, _PAGE = 1, 5, 0x1000
_EXIT = b"\x31\xff\xb8\x3c\x00\x00\x40\x0f\x05"
"""xor edi, edi; mov eax, __X32_SYSCALL_BIT | 60; syscall"""


def runs_x32() -> bool:
    """Whether the kernel executes x32 programs. False only if it refuses one with ENOEXEC.

    Most kernels are built without x32 (CONFIG_X86_X32_ABI), or need a boot parameter. Takes about a millisecond.
    """
    try:
        file = os.memfd_create("x32", 0)  # some hosts allow no executable memfd (vm.memfd_noexec)
    except OSError:
        return True
    try:
        os.write(file, _program())
        process = os.posix_spawn(f"/proc/self/fd/{file}", ["x32"], {})
    except OSError as error:
        return error.errno != errno.ENOEXEC
    finally:
        os.close(file)
    with suppress(ChildProcessError):  # SIGCHLD is ignored
        os.waitpid(process, 0)
    return True


def _program() -> bytes:
    """Return the smallest program that exits with 0."""
    size = _HEADER + _SEGMENT + len(_EXIT)
    kind = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    fields = (2, _X86_64, 1, _ADDRESS + _HEADER + _SEGMENT, _HEADER, 0, 0, _HEADER, _SEGMENT, 1, 0, 0, 0)
    segment = (_LOADED, 0, _ADDRESS, _ADDRESS, size, size, _READABLE_EXECUTABLE, _PAGE)
    return kind + struct.pack("<HHIIIIIHHHHHH", *fields) + struct.pack("<8I", *segment) + _EXIT
