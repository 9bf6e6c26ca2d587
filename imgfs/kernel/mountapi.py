"""Mount system calls of Linux 5.2 and later: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), mount_setattr(2).

This module owns the calls, the kernel's error messages, and the descriptor of a detached mount. erofs.py, overlay.py
and bind.py own the options of each filesystem.

Do not call these functions on the event loop: a path that the kernel resolves may lead through the daemon's own tree.
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
"""Bytes. fsconfig(2) refuses longer values."""

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
"""System call numbers. All architectures share them since Linux 5.1, except that alpha adds 110."""
_SET_FLAG, _SET_STRING, _SET_FD, _CMD_CREATE = 0, 1, 5, 6
_PRIVATE = 1 << 18
"""MS_PRIVATE: a clone and its original do not propagate later mounts to each other."""
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
    errno.EPERM: "mounting needs CAP_SYS_ADMIN: run as root, outside a confined container",
    errno.ENODEV: "load the kernel's module with that name",
    errno.ENOSYS: f"Linux {os.uname().release} is too old; run a newer kernel",
    errno.EBUSY: "end the processes that use it",
    errno.ENOTCONN: "the daemon that served it has exited; mount it again",
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
    """An object that owns one descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor. This object keeps ownership of it."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Detached(_Descriptor):
    """A mount that is attached to no path. Closing it before `attach` removes the mount.

    Since Linux 6.15 it can be an overlay layer while it is detached. The overlay then keeps it alive.
    """

    def attach(self, target: str) -> None:
        """Mount it over `target`. A symbolic link at the last component is not followed.

        Raises NotFound, NotPermitted or Busy.
        """
        self._move(AT_FDCWD, os.fsencode(target), _MOVE_FROM_DESCRIPTOR, target)

    def attach_over(self, directory: int, target: str) -> None:
        """Mount it over an open directory. Errors name the directory `target`. Raises as `attach`."""
        self._move(directory, b"", _MOVE_FROM_DESCRIPTOR | _MOVE_TO_DESCRIPTOR, target)

    def _move(self, directory: int, path: bytes, flags: int, target: str) -> None:
        code = _call(_MOVE_MOUNT, self.fileno(), b"", directory, path, flags)[1]
        if code:
            advice = "mount a directory over a directory" if code in (errno.EINVAL, errno.ENOTDIR) else ""
            raise explain(code, target, "cannot be mounted over", advice=advice)

    def restrict(self, attributes: int) -> None:
        """Set mount attributes (RDONLY, ...). No attribute is cleared."""
        _set(self.fileno(), b"", _MountAttr(attr_set=attributes), _AT_EMPTY_PATH, "the detached mount")

    def loosen(self, attributes: int) -> None:
        """Clear mount attributes (NOSUID, ...)."""
        _set(self.fileno(), b"", _MountAttr(attr_clr=attributes), _AT_EMPTY_PATH, "the detached mount")

    def isolate(self) -> None:
        """Make the mount private.

        A clone starts as a peer of its original and would receive the original's later mounts.
        """
        _set(self.fileno(), b"", _MountAttr(propagation=_PRIVATE), _AT_EMPTY_PATH, "the detached mount")


class FilesystemContext(_Descriptor):
    """A filesystem that is being configured (fsopen(2)).

    If the kernel refuses a step, the error has the kernel's message.
    """

    def __init__(self, filesystem: str, subject: str, hints: Mapping[int, str] = _NO_HINTS) -> None:
        """Open a context for `filesystem`. Errors name `subject`. `hints` maps an errno to advice for the caller."""
        descriptor, code = _call(_FSOPEN, filesystem.encode(), _CLOEXEC)
        super().__init__(descriptor)
        self._subject = subject
        self._filesystem = filesystem
        self._hints = hints
        self._opened = ExitStack()
        if code:
            raise explain(code, subject, f"the kernel refuses {filesystem}")

    def close(self) -> None:
        """Close the context and the descriptors opened for it. Mounts that were created stay."""
        self._opened.close()
        super().close()

    def set_flag(self, key: str) -> None:
        """Set an option that has no value."""
        self._configure(_SET_FLAG, key, None, 0)

    def set_string(self, key: str, value: str) -> None:
        """Set an option. Raises Invalid if the value is longer than LONGEST_STRING bytes."""
        self._configure(_SET_STRING, key, value.encode(), 0)

    def set_path(self, key: str, path: str | os.PathLike[str]) -> None:
        """Set an option to a path of any length.

        A path longer than LONGEST_STRING, or with a backslash (an escape character in some options), is passed as the
        path of a descriptor in /proc.
        """
        name = os.fsencode(path)
        if len(name) > LONGEST_STRING or b"\\" in name:
            name = b"/proc/self/fd/%d" % self._open(name)
        self._configure(_SET_STRING, key, name, 0)

    def set_descriptor(self, key: str, descriptor: int) -> None:
        """Set an option to the object of an open descriptor."""
        self._configure(_SET_FD, key, None, descriptor)

    def create(self, attributes: int) -> Detached:
        """Create the filesystem and return a detached mount of it."""
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
        """Return the kernel's messages, joined, without the severity letter of each (fsopen(2))."""
        said: list[str] = []
        while True:
            try:
                said.append(os.read(self.fileno(), _MESSAGE).decode(errors="replace").strip()[2:])
            except OSError:  # ENODATA: no more messages
                return "; ".join(said)


def clone(source: str) -> Detached:
    """Return a detached second mount of the tree at `source` (a bind mount).

    Both mounts share superblock and page cache. Later mounts do not propagate between them. Raises NotFound,
    NotPermitted or Unsupported.
    """
    return _clone(AT_FDCWD, os.fsencode(source), 0, source)


def clone_mount(mount: Detached) -> Detached:
    """Return a second mount of a detached mount. Raises Invalid before Linux 6.15."""
    return _clone(mount.fileno(), b"", _AT_EMPTY_PATH, "the detached mount")


def restrict(path: str, attributes: int) -> None:
    """Set mount attributes on the mount at `path`.

    No attribute is cleared; other mounts of the filesystem are not changed.
    """
    _set(AT_FDCWD, os.fsencode(path), _MountAttr(attr_set=attributes), 0, path)


def explain(code: int, subject: str, what: str, words: str = "", advice: str = "") -> ImgfsError:
    """Return the error for a refused call: the subject, the refused operation, the kernel's message (or errno's), and
    advice.
    """
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
    """Return the result and the errno (0 on success). The GIL is released during the call.

    Integers are passed as long because syscall(2) is variadic.
    """
    result = LIBC.syscall(
        ctypes.c_long(number), *(ctypes.c_long(item) if isinstance(item, int) else item for item in arguments)
    )
    return result, ctypes.get_errno() if result < 0 else 0
