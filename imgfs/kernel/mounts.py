"""Read the mount table, /proc/self/mountinfo (proc(5)), and unmount.

No function opens a path below a mount of a dead daemon. They read the table, and pass paths to umount2(2) only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imgfs.errors import Busy, ImgfsError, NotFound, NotPermitted
from imgfs.kernel.libc import LIBC

FILESYSTEM = "fuse.imgfs"
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of the mount table. `device` is the device number (major, minor)."""

    mountpoint: str
    filesystem: str
    source: str
    device: tuple[int, int]
    number: int
    parent: int
    """The `number` of the mount on which this one is mounted."""
    groups: frozenset[str] = frozenset()
    """The peer groups from which this mount receives mounts and unmounts (mount_namespaces(7))."""
    root: str = "/"
    """The directory of the filesystem that the mount shows."""


def mounts(process: int | None = None) -> list[MountEntry]:
    """Return every mount that a process (by default this one) sees, oldest first. Raises OSError."""
    return [_parse(os.fsdecode(line)) for line in _lines(process)]


def mount_at(path: str) -> MountEntry | None:
    """Return the topmost mount at exactly `path`, or None. It does not access `path` itself."""
    real, lines = _absolute(path), _lines()
    found = [line for line in lines if _place(line) == real]
    if len(found) < 2:  # parse the whole table only if mounts are stacked
        return _parse(os.fsdecode(found[0])) if found else None
    everything = {mount.number: mount for mount in (_parse(os.fsdecode(line)) for line in lines)}
    stacked = [mount for mount in everything.values() if mount.mountpoint == real]
    return max(stacked, key=lambda mount: _height(mount, everything))


def mounts_below(path: str) -> list[MountEntry]:
    """Return every mount below `path`, but none at `path` itself, deepest first, which is the order to unmount them.

    It does not access `path`, so it works for a dead daemon's tree too.
    """
    everything = {mount.number: mount for mount in mounts()}
    inside = _absolute(path).rstrip("/") + "/"
    below = [mount for mount in everything.values() if mount.mountpoint.startswith(inside)]
    return sorted(below, key=lambda mount: _height(mount, everything), reverse=True)


def path_in_mount(mount: MountEntry, path: str) -> str | None:
    """Return where `mount` shows a path of its filesystem; None if it does not show the path."""
    root, wanted = PurePosixPath(mount.root), PurePosixPath(path)
    return str(PurePosixPath(mount.mountpoint) / wanted.relative_to(root)) if wanted.is_relative_to(root) else None


@contextmanager
def watch_mounts() -> Generator[select.epoll]:
    """Yield an epoll that becomes readable when the mount table changes, until it is polled.

    The table itself is always readable. A change is reported as POLLPRI (proc(5)). The epoll turns this into
    readability, for which any caller can wait.
    """
    with open("/proc/self/mountinfo", "rb") as table, select.epoll() as changes:
        changes.register(table, select.EPOLLPRI)
        yield changes


def is_dead(path: str) -> bool:
    """Return whether `path` is a FUSE mount whose daemon has ended (ENOTCONN).

    It uses statvfs(3): stat(2) may be cached.
    """
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def is_ours(path: str) -> bool:
    """Return whether the mount at `path` is a tree of imgfs, with a running daemon or a dead one."""
    mount = mount_at(path)
    return mount is not None and mount.filesystem == FILESYSTEM


def unmount(path: str, *, detach: bool = False) -> None:
    """Unmount the topmost mount at `path`.

    With `detach` (MNT_DETACH) the mount and every mount below it leave the tree at once, and end when no process uses
    them any more. Users without CAP_SYS_ADMIN unmount through fusermount3. Raises Busy, NotFound (nothing is mounted
    there) or NotPermitted.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    if LIBC.umount2(os.fsencode(_absolute(path)), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        _unmount_as_user(path, detach=detach)
        return
    raise _explain(code, path)


def expire(path: str) -> bool:
    """Unmount `path` if no process has used the mount since the last call; return whether it is unmounted.

    The first call only marks the mount (umount2(2), MNT_EXPIRE). Users without CAP_SYS_ADMIN cannot set the mark: their
    mount is unmounted by the first call that finds it unused. Mounts of other users stay.
    """
    if LIBC.umount2(os.fsencode(_absolute(path)), UMOUNT_NOFOLLOW | MNT_EXPIRE) == 0:
        return True
    code = ctypes.get_errno()
    if code != errno.EPERM:
        return code in (errno.EINVAL, errno.ENOENT)
    with suppress(Busy, NotPermitted, NotFound):
        _unmount_as_user(path, detach=False)
    return mount_at(path) is None


def _unmount_as_user(path: str, *, detach: bool) -> None:
    try:
        done = subprocess.run(
            ["fusermount3", "-u", *(["-z"] if detach else []), "--", path], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise NotPermitted(f"{path}: cannot be unmounted: fusermount3 is missing; install fuse3") from None
    if done.returncode:
        text = done.stderr.strip()
        if "busy" in text.lower():
            raise Busy(f"{path}: {text}")
        raise NotPermitted(f"{path}: {text}") if mount_at(path) else NotFound(f"{path}: nothing is mounted there")


def _explain(code: int, path: str) -> ImgfsError:
    if code == errno.EBUSY:
        return Busy(f"{path}: is in use; end the processes in it (see `fuser -vm {path}`) or use --lazy")
    if code in (errno.EINVAL, errno.ENOENT):
        return NotFound(f"{path}: nothing is mounted there")
    return NotPermitted(f"{path}: cannot be unmounted: {os.strerror(code)}")


def _height(mount: MountEntry, everything: dict[int, MountEntry]) -> int:
    """Count the mounts below this one in the stack. The table is in order of creation, which may differ."""
    height = 0
    parent = everything.get(mount.parent)
    while parent is not None and parent.number != parent.parent:
        height += 1
        parent = everything.get(parent.parent)
    return height


def _absolute(path: str) -> str:
    """Return an absolute path. Only the parent is resolved, because resolving a dead mount would fail with ENOTCONN."""
    head, tail = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(head), tail)


def _lines(process: int | None = None) -> list[bytes]:
    table = Path(f"/proc/{process or 'self'}/mountinfo").read_bytes().rstrip(b"\n")
    # Split at newlines only: a path may contain other line separators. The table is empty for a process whose root was
    # taken away (pivot_root(2)).
    return table.split(b"\n") if table else []


def _place(line: bytes) -> str:
    return _unescape(os.fsdecode(line.split(b" ", 5)[4]))


def _parse(line: str) -> MountEntry:
    left, _, right = line.partition(" - ")
    fields, kind = left.split(" "), right.split(" ")
    major, _, minor = fields[2].partition(":")
    device = int(major), int(minor)
    tags = [tag.partition(":") for tag in fields[6:]]
    groups = frozenset(group for how, _, group in tags if how in ("shared", "master"))
    mountpoint, source, root = map(_unescape, (fields[4], kind[1], fields[3]))
    return MountEntry(mountpoint, kind[0], source, device, int(fields[0]), int(fields[1]), groups, root)


def _unescape(text: str) -> str:
    return text if "\\" not in text else _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
