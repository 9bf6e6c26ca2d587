"""The mount system calls of Linux 5.2 and later (fsopen(2), fsconfig(2), fsmount(2), open_tree(2), mount_setattr(2)).

It owns the calls, the kernel's own words about a refusal, and the descriptor of a mount that is in no tree yet. What a
filesystem wants to be told is in erofs.py, overlay.py and bind.py.

Nothing here may run on the event loop: a path handed to the kernel may lead through the daemon's own tree.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import Self

from imgfs.errors import (
    Busy,
    ImgfsError,
    Invalid,
    Malformed,
    NoSpace,
    NotFound,
    NotPermitted,
    ReadOnly,
    StorageFailed,
    Unsupported,
)
from imgfs.kernel.libc import AT_FDCWD, LIBC

RDONLY, NOSUID, NODEV = 1, 2, 4
"""Mount attributes (MOUNT_ATTR_*, linux/mount.h)."""

LONGEST_STRING = 255
"""Bytes; fsconfig(2) refuses a longer value."""

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
"""Numbers in the table that all architectures share since Linux 5.1 (alpha alone adds 110)."""
_SET_FLAG, _SET_STRING, _SET_FD, _CMD_CREATE = 0, 1, 5, 6
_PRIVATE = 1 << 18
"""MS_PRIVATE: mounts over this one and over the one it was made from stay apart."""
_CLOEXEC = 1
"""FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC."""
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_FROM_DESCRIPTOR, _MOVE_TO_DESCRIPTOR = 0x04, 0x40
_MESSAGE = 4096

_KINDS: dict[int, type[ImgfsError]] = {
    errno.EPERM: NotPermitted,
    errno.EACCES: NotPermitted,
    errno.ENOENT: NotFound,
    errno.EBUSY: Busy,
    errno.ENODEV: Unsupported,
    errno.ENOSYS: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
    errno.ENOTBLK: Unsupported,
    errno.EUCLEAN: Malformed,
    errno.EBADMSG: Malformed,
    errno.EINVAL: Invalid,
    errno.ENOTDIR: Invalid,
    errno.ELOOP: Invalid,
    errno.ENAMETOOLONG: Invalid,
    errno.EROFS: ReadOnly,
    errno.ENOSPC: NoSpace,
}
_ADVICE = {
    errno.EPERM: "mounting takes CAP_SYS_ADMIN: run as root, outside of a confined container",
    errno.ENODEV: "load the kernel's module of that name",
    errno.ENOSYS: f"Linux {os.uname().release} is too old for it",
    errno.EBUSY: "end what uses it",
    errno.ENOTCONN: "the daemon that serves it is gone; mount it again",
}
_NO_HINTS: Mapping[int, str] = MappingProxyType({})


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _Descriptor:
    """Something that is one descriptor, and is gone with it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor; it stays ours."""
        return self._descriptor

    def close(self) -> None:
        """Give it back; calling it twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Detached(_Descriptor):
    """A mount that no path leads to; closing it before `attach` leaves nothing behind.

    It can be a layer of an overlay as it is (Linux 6.15), which keeps it alive for as long as the overlay lives.
    """

    def attach(self, target: str) -> None:
        """Mount it over `target`, whose last component is not followed. Raises NotFound, NotPermitted or Busy."""
        self._move(AT_FDCWD, os.fsencode(target), _MOVE_FROM_DESCRIPTOR, target)

    def attach_over(self, directory: int, target: str) -> None:
        """Mount it over an open directory; errors name it `target`. Raises as `attach`."""
        self._move(directory, b"", _MOVE_FROM_DESCRIPTOR | _MOVE_TO_DESCRIPTOR, target)

    def _move(self, directory: int, path: bytes, flags: int, target: str) -> None:
        code = _call(_MOVE_MOUNT, self.fileno(), b"", directory, path, flags)[1]
        if code:
            advice = "mount a directory over a directory" if code in (errno.EINVAL, errno.ENOTDIR) else ""
            raise explain(code, target, "cannot be mounted over", advice=advice)

    def restrict(self, attributes: int) -> None:
        """Set mount attributes (RDONLY, ...) on it; none is taken away."""
        _set(self.fileno(), b"", _MountAttr(attr_set=attributes), _AT_EMPTY_PATH, "the detached mount")

    def loosen(self, attributes: int) -> None:
        """Take mount attributes (NOSUID, ...) away from it."""
        _set(self.fileno(), b"", _MountAttr(attr_clr=attributes), _AT_EMPTY_PATH, "the detached mount")

    def isolate(self) -> None:
        """End the sharing of later mounts that a clone begins with."""
        _set(self.fileno(), b"", _MountAttr(propagation=_PRIVATE), _AT_EMPTY_PATH, "the detached mount")


class FilesystemContext(_Descriptor):
    """A filesystem that is being described to the kernel. Each refusal raises with the kernel's words about it."""

    def __init__(self, filesystem: str, subject: str, hints: Mapping[int, str] = _NO_HINTS) -> None:
        """Begin a mount of `filesystem`; errors are about `subject`, and `hints` say what to do about an errno."""
        descriptor, code = _call(_FSOPEN, filesystem.encode(), _CLOEXEC)
        super().__init__(descriptor)
        self._subject = subject
        self._filesystem = filesystem
        self._hints = hints
        self._opened = ExitStack()
        if code:
            raise explain(code, subject, f"the kernel refuses {filesystem}")

    def close(self) -> None:
        """Forget what was described; a mount that was created stays."""
        self._opened.close()
        super().close()

    def set_flag(self, key: str) -> None:
        """Set an option that takes no value."""
        self._configure(_SET_FLAG, key, None, 0)

    def set_string(self, key: str, value: str) -> None:
        """Set an option; a value over LONGEST_STRING bytes is Invalid."""
        self._configure(_SET_STRING, key, value.encode(), 0)

    def set_path(self, key: str, path: str | os.PathLike[str]) -> None:
        """Set an option to a path of any length.

        One over LONGEST_STRING, or with a backslash (which some options take for an escape), goes by a descriptor.
        """
        name = os.fsencode(path)
        if len(name) > LONGEST_STRING or b"\\" in name:
            name = b"/proc/self/fd/%d" % self._open(name)
        self._configure(_SET_STRING, key, name, 0)

    def set_descriptor(self, key: str, descriptor: int) -> None:
        """Set an option to what an open descriptor stands for."""
        self._configure(_SET_FD, key, None, descriptor)

    def create(self, attributes: int) -> Detached:
        """Make the filesystem and a mount of it, in no tree yet."""
        self._configure(_CMD_CREATE, None, None, 0)
        descriptor, code = _call(_FSMOUNT, self.fileno(), _CLOEXEC, attributes)
        if code:
            raise self._refusal(code)
        return Detached(descriptor)

    def _open(self, path: bytes) -> int:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise explain(error.errno or errno.EIO, os.fsdecode(path), "cannot be opened") from None
        self._opened.callback(os.close, descriptor)
        return descriptor

    def _configure(self, command: int, key: str | None, value: bytes | None, number: int) -> None:
        name = None if key is None else key.encode()
        code = _call(_FSCONFIG, self.fileno(), command, name, value, number)[1]
        if code:
            raise self._refusal(code, key, value)

    def _refusal(self, code: int, key: str | None = None, value: bytes | None = None) -> ImgfsError:
        asked = f" with {key}" if key else ""
        if value is not None:
            asked += f"={os.fsdecode(value)}"
        words, advice = self._words(), self._hints.get(code, "")
        return explain(code, self._subject, f"{self._filesystem}{asked} is refused", words, advice)

    def _words(self) -> str:
        """What the kernel has said so far, without the letter that tells how bad it is (fsopen(2))."""
        said: list[str] = []
        while True:
            try:
                said.append(os.read(self.fileno(), _MESSAGE).decode(errors="replace").strip()[2:])
            except OSError:  # ENODATA: that was all
                return "; ".join(said)


def clone(source: str) -> Detached:
    """Make a second mount of what is at `source` (a bind mount), in no tree yet.

    It shares superblock and page cache with the first, but no later mounts. Raises NotFound, NotPermitted or
    Unsupported.
    """
    return _clone(AT_FDCWD, os.fsencode(source), 0, source)


def clone_mount(mount: Detached) -> Detached:
    """Make a second mount of a detached one (Linux 6.15; Invalid on older ones)."""
    return _clone(mount.fileno(), b"", _AT_EMPTY_PATH, "the detached mount")


def restrict(path: str, attributes: int) -> None:
    """Set mount attributes on the mount at `path`; none is taken away, its other mounts stay as they are."""
    _set(AT_FDCWD, os.fsencode(path), _MountAttr(attr_set=attributes), 0, path)


def explain(code: int, subject: str, what: str, words: str = "", advice: str = "") -> ImgfsError:
    """The error for a refused call: subject, what was refused, the kernel's words (else errno's), and what to do."""
    reason = words or os.strerror(code)
    advice = advice or _ADVICE.get(code, "")
    return _KINDS.get(code, StorageFailed)(f"{subject}: {what}: {reason}" + (f"; {advice}" if advice else ""))


def _clone(directory: int, path: bytes, flags: int, subject: str) -> Detached:
    descriptor, code = _call(_OPEN_TREE, directory, path, flags | _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if code:
        raise explain(code, subject, "cannot be mounted a second time")
    mount = Detached(descriptor)
    try:
        mount.isolate()
    except ImgfsError:
        mount.close()
        raise
    return mount


def _set(directory: int, path: bytes, wanted: _MountAttr, flags: int, subject: str) -> None:
    code = _call(_MOUNT_SETATTR, directory, path, flags, ctypes.byref(wanted), ctypes.sizeof(wanted))[1]
    if code:
        raise explain(code, subject, "its mount attributes cannot be set")


def _call(number: int, *arguments: object) -> tuple[int, int]:
    """The result and errno (0: done). Numbers go as long, since syscall(2) is variadic; the GIL is free meanwhile."""
    result = LIBC.syscall(
        ctypes.c_long(number), *(ctypes.c_long(item) if isinstance(item, int) else item for item in arguments)
    )
    return result, ctypes.get_errno() if result < 0 else 0
