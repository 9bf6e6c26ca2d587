"""Finds out whether the kernel refuses to execute a file (execve(2)), if the runtime only reports exit code 1.

It is called after the failure and reports a refusal only if it is certain. The files are an image's: every path is
resolved with the container's root as its root, and only a little of each file is read.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

from imgfs.kernel.resolve import open_in_root

WORD_MAX = 32 * 4096
"""Largest argument or variable in bytes with its NUL (MAX_ARG_STRLEN)."""
_HEAD = 256
"""Bytes that the kernel reads to detect the format (BINPRM_BUF_SIZE)."""
_DEPTH = 5
"""Nested interpreters."""
_HEADER = 52
"""Bytes of an ELF header, of the shorter variant."""
_SEGMENT, _SEGMENTS = 56, 64
"""Bytes of a program header, of the longer variant, and how many headers are read."""
_PT_INTERP, _PATH_MAX = 3, 4096
_ORDERS = {b"\1": "<", b"\2": ">"}
_MACHINES = {"x86_64": {62, 3}, "aarch64": {183, 40}, "ppc64le": {21}, "s390x": {22}}
"""ELF machine numbers that a kernel can run."""
_HANDLERS = "/proc/sys/fs/binfmt_misc"
_OWN_FILES = ("register", "status")
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def refusal(process: Mapping[str, Any], root: int) -> int:
    """Return the errno with which the kernel refuses the process of an OCI spec (config.md, "Process") in directory
    `root`.

    Return 0 if the kernel does not refuse, or it is unknown. Blocks.
    """
    args, env = cast("Sequence[str]", process["args"]), cast("Sequence[str]", process.get("env") or ())
    if any(len(os.fsencode(word)) >= WORD_MAX for word in (*args, *env)):
        return errno.E2BIG
    program = _find(args[0], env, process.get("cwd") or "/", root)
    return _refusal_of(program, root) if program is not None else 0


def _find(name: str, env: Sequence[str], cwd: str, root: int) -> str | None:
    """Return the path of a program as the runtime finds it; None if there is none, which the runtime reports itself."""
    if "/" in name:
        return posixpath.join(cwd, name)
    path = next((one.removeprefix("PATH=") for one in env if one.startswith("PATH=")), "")
    places = [posixpath.join(cwd, directory, name) for directory in path.split(":")]
    return next((place for place in places if not _obstacle(place, root)), None)


def _refusal_of(program: str, root: int) -> int:
    for _ in range(_DEPTH):
        try:
            data = _head(program, root)
        except OSError:
            return 0
        interpreter: bytes | None = None
        if data.startswith(b"#!"):
            words = data[2:].partition(b"\n")[0].split()
            interpreter = words[0] if words else None
        elif data.startswith(b"\x7fELF") and _is_native(data):
            interpreter = _loader(program, root)
            if interpreter is None:
                return 0
        if interpreter is None:
            return 0 if _has_handlers() else errno.ENOEXEC
        program = os.fsdecode(interpreter)
        if obstacle := _obstacle(program, root):
            return obstacle
    return 0


def _obstacle(path: str, root: int) -> int:
    """Return ENOENT if there is no such file, EACCES if it is not executable, and 0 if it is or that is unknown."""
    try:
        file = open_in_root(root, os.fsencode(path), os.O_PATH)
    except OSError as error:
        return errno.ENOENT if error.errno in _ABSENT else 0
    try:
        mode = os.fstat(file).st_mode
    finally:
        os.close(file)
    return 0 if stat.S_ISREG(mode) and mode & 0o111 else errno.EACCES


def _head(path: str, root: int, offset: int = 0, size: int = _HEAD) -> bytes:
    """Read from a regular file. Raises OSError."""
    file = open_in_root(root, os.fsencode(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return os.pread(file, size, offset)
    finally:
        os.close(file)


def _is_native(head: bytes) -> bool:
    """Return whether an ELF file is for this kernel's machine. True if that is unknown."""
    natives = _MACHINES.get(os.uname().machine)
    order = _ORDERS.get(head[5:6])
    if natives is None or order is None or len(head) < _HEADER:
        return True
    return struct.unpack_from(f"{order}H", head, 18)[0] in natives


def _loader(program: str, root: int) -> bytes | None:
    """Return the interpreter of an ELF file (elf(5), PT_INTERP); None if there is none or the file is unreadable."""
    try:
        head = _head(program, root)
        order, is_wide = _ORDERS[head[5:6]], head[4:5] == b"\2"
        places = struct.unpack_from(f"{order}Q14xHH" if is_wide else f"{order}I10xHH", head, 32 if is_wide else 28)
        start, size, count = places
        for number in range(min(count, _SEGMENTS)):
            segment = _head(program, root, start + number * size, _SEGMENT)
            kind, offset, length = _segment(segment, order, is_wide=is_wide)
            if kind == _PT_INTERP:
                return _head(program, root, offset, min(length, _PATH_MAX)).rstrip(b"\0") or None
    except (OSError, KeyError, struct.error, OverflowError):
        pass
    return None


def _segment(data: bytes, order: str, *, is_wide: bool) -> tuple[int, int, int]:
    """Return type, file offset and file length of a program header."""
    if is_wide:
        return struct.unpack_from(f"{order}I4xQ16xQ", data)
    return struct.unpack_from(f"{order}II8xI", data)


def _has_handlers() -> bool:
    """Return whether the kernel has other formats registered (binfmt_misc). Which files they match is not checked."""
    try:
        return any(name not in _OWN_FILES for name in os.listdir(_HANDLERS))
    except OSError:
        return False
