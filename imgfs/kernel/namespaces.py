"""Mount namespaces of other processes: mounting and unmounting there (setns(2), mount_namespaces(7)).

Every call runs its work in a thread that ends afterwards, because a thread that has entered another mount namespace
must not do anything else. Nothing here may run on the event loop.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

from imgfs.errors import Busy, NotPermitted
from imgfs.kernel.libc import LIBC, last_error
from imgfs.kernel.mountapi import Detached, clone
from imgfs.kernel.mounts import MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW

T = TypeVar("T")

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_NS_GET_USERNS = 0xB701
"""ioctl_ns(2): the user namespace that owns a namespace."""


def mount_namespace(process: int | None = None) -> int | None:
    """Return the number of a process's mount namespace (by default the daemon's), or None if the process has ended.

    The kernel may reuse the number when no process and no descriptor refers to the namespace any more.
    """
    try:
        return os.stat(f"/proc/{process or 'self'}/ns/mnt").st_ino
    except OSError:
        return None


def processes_in(namespace: int) -> Iterator[int]:
    """Yield one process for each root directory that processes have in a mount namespace."""
    roots: set[str] = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # the process has ended
            if mount_namespace(int(name)) == namespace and (root := os.readlink(f"/proc/{name}/root")) not in roots:
                roots.add(root)
                yield int(name)


def attach_there(process: int, source: str, targets: Sequence[str], device: tuple[int, int]) -> None:
    """Mount what is at `source` in the daemon's namespace over `targets` in the namespace of `process`.

    `targets` are paths below the root directory of `process`. Each must be a directory of the filesystem `device` with
    nothing mounted over it; other targets are left alone. Raises NotPermitted where the kernel or the owner of the
    namespace does not allow it, and what cloning the source raises.
    """
    with clone(source) as first, ExitStack() as stack:
        # A mount goes into one tree only, and the source cannot be found from the other namespace.
        clones = [first, *(stack.enter_context(clone(source)) for _ in targets[1:])]
        _run_there(process, lambda: _attach(clones, targets, device))


def unmount_there(process: int, path: str, *, detach: bool = False) -> None:
    """Unmount what is mounted at `path` in the namespace of `process`. Raises Busy or NotPermitted."""
    code = _run_there(process, lambda: _umount(path, MNT_DETACH if detach else 0))
    if code == errno.EBUSY:
        raise Busy(f"{path}: is in use in the mount namespace of process {process}; end the processes in it")
    if code not in (0, errno.EINVAL, errno.ENOENT):
        raise NotPermitted(f"{path}: cannot be unmounted in the namespace of process {process}: {os.strerror(code)}")


def expire_there(process: int, path: str) -> None:
    """Unmount `path` in the namespace of `process` if no process has used it since the last call (MNT_EXPIRE)."""
    _run_there(process, lambda: _umount(path, MNT_EXPIRE))


def _attach(clones: Sequence[Detached], targets: Sequence[str], device: tuple[int, int]) -> None:
    for mount, target in zip(clones, targets, strict=True):
        with suppress(FileNotFoundError, NotADirectoryError):
            directory = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(directory).st_dev
                if (os.major(found), os.minor(found)) == device:
                    mount.attach_over(directory, target)
            finally:
                os.close(directory)


def _umount(path: str, flags: int) -> int:
    """Return errno; 0 means that the mount is gone."""
    return 0 if LIBC.umount2(os.fsencode(path), UMOUNT_NOFOLLOW | flags) == 0 else ctypes.get_errno()


def _run_there(process: int, work: Callable[[], T]) -> T:
    """Run `work` with the mount namespace and the root directory of `process`, in a thread of its own."""
    results: list[T] = []
    errors: list[Exception] = []

    def enter() -> None:
        try:
            _enter(process)
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised below, in the thread of the caller
            errors.append(error)

    thread = threading.Thread(target=enter, name="imgfs-namespace")
    thread.start()
    thread.join()
    if not errors:
        return results[0]
    if isinstance(errors[0], OSError):
        raise NotPermitted(f"the mount namespace of process {process}: {errors[0].strerror}") from None
    raise errors[0]


def _enter(process: int) -> None:
    """Move this thread, and no other thread of the daemon, into the namespace and the root directory of `process`.

    A namespace that belongs to another user namespace is refused: its root user could take nosuid and nodev from a
    mount that is moved in, because such flags are locked only for mounts that are copied when the namespace is made.
    Raises OSError or NotPermitted.
    """
    with ExitStack() as stack:
        namespace = _opened(stack, f"/proc/{process}/ns/mnt", os.O_RDONLY)
        root = _opened(stack, f"/proc/{process}/root", os.O_PATH | os.O_DIRECTORY)
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
        stack.callback(os.close, owner)
        if not os.path.sameopenfile(owner, _opened(stack, "/proc/self/ns/user", os.O_RDONLY)):
            raise NotPermitted(f"the mount namespace of process {process} belongs to another user namespace")
        # Threads share root and working directory; setns(2) refuses a thread that still does.
        if LIBC.unshare(_CLONE_FS) or LIBC.setns(namespace, _CLONE_NEWNS):
            raise last_error()
        os.fchdir(root)
        os.chroot(".")


def _opened(stack: ExitStack, path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor
