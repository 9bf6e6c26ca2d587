"""Reading files of proc(5) about processes, with few system calls."""

from __future__ import annotations

import os

_PIECE = 1 << 16
_BOOT_ID = "sys/kernel/random/boot_id"
STATE, FLAGS, START = 0, 6, 19
"""Fields of `stat_of`: a letter; the kernel's flags; ticks since the boot."""


def read_of(process: int | str, name: str) -> bytes:
    """Read a file of /proc/<process>. Raises OSError, also if the process has ended."""
    return _read(f"/proc/{process}/{name}")


def write_to(path: str, data: bytes) -> None:
    """Write to a file of proc(5) or cgroups(7) in one call. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def stat_of(process: int) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) after the name. Raises OSError."""
    return read_of(process, "stat").rpartition(b") ")[2].split()


def boot_id() -> str:
    """Return the unique ID of this boot. Raises OSError."""
    return _read(f"/proc/{_BOOT_ID}").decode().strip()


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(file, _PIECE)
        while more := os.read(file, _PIECE):
            data += more
    finally:
        os.close(file)
    return data
