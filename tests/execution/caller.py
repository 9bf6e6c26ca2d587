"""A small x86-64 program: makes one system call without arguments, and exits with its errno, or 0 if it succeeds."""

from __future__ import annotations

import struct
from pathlib import Path

_ADDRESS, _HEADER, _SEGMENT = 0x400000, 64, 56
_CODE = (
    b"\xb8%b"  # mov eax, NUMBER
    b"\x31\xff\x31\xf6\x31\xd2\x4d\x31\xd2"  # xor edi, edi; xor esi, esi; xor edx, edx; xor r10, r10
    b"%b"  # syscall, or int 0x80
    b"\xf7\xd8\x79\x02\x31\xc0"  # neg eax; jns +2; xor eax, eax
    b"\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05"  # mov edi, eax; mov eax, 60; syscall
)
_NEW, _OLD = b"\x0f\x05", b"\x31\xdb\xcd\x80"
"""Calls of 64-bit programs, and of 32-bit programs, whose first argument is in ebx."""


def make_caller(path: Path, number: int, *, is_32_bit: bool = False) -> Path:
    """Write the program to `path`."""
    code = _CODE % (struct.pack("<I", number), _OLD if is_32_bit else _NEW)
    size = _HEADER + _SEGMENT + len(code)
    kind = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, _ADDRESS + _HEADER + _SEGMENT, _HEADER, 0, 0, _HEADER, _SEGMENT, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    path.write_bytes(kind + header + segment + code)
    path.chmod(0o755)
    return path
