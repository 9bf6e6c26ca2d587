"""Where contestants work: a fresh scratch disk, with one room for each run, its mounts and its disk usage.

Owns unmounting and deleting. It knows no contestant.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .processes import Failed, end_orphans, run

RAM = "ram"
SHM = Path("/dev/shm")
_GIB = 1 << 30
_MNT_DETACH = 2
_MS_RDONLY = 1


@contextmanager
def scratch(where: str) -> Iterator[Path]:
    """Yield a directory for all rooms, with a short path (podman allows 50 characters, a socket 107).

    `ram`: a fresh ext4 on a loop device over a file in /dev/shm, because the speed of creating files on a used disk
    varies tenfold. Any other value is a directory on a disk that the user chooses, used as it is. At the end the
    directory is unmounted and deleted.
    """
    if where != RAM:
        Path(where).mkdir(parents=True, exist_ok=True)
    top = Path(tempfile.mkdtemp(prefix="ib-", dir=None if where == RAM else where))
    backing = SHM / f"{top.name}.ext4"
    try:
        if where == RAM:
            _mount_ext4(backing, top)
        yield top
    finally:
        unmount_below(top)
        shutil.rmtree(top, ignore_errors=True)
        backing.unlink(missing_ok=True)


def _mount_ext4(backing: Path, top: Path) -> None:
    size = min(16 * _GIB, shutil.disk_usage(SHM).free * 3 // 4)
    if size < 6 * _GIB:
        raise Failed(f"/dev/shm: {size / _GIB:.1f} GiB to use, the rooms need 6: name a directory with --scratch")
    with backing.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", backing)
    run("mount", "-o", "loop,discard", backing, top)


class Rooms:
    """Fresh directories below the scratch disk, one a run."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._count = 0

    @contextmanager
    def room(self) -> Iterator[Path]:
        """Yield a fresh directory.

        At the end, also after a failure, its mounts are removed, detached programs are ended, and it is deleted.
        """
        self._count += 1
        room = self._top / f"r{self._count:03}"
        (room / "tmp").mkdir(parents=True)
        try:
            yield room
        finally:
            unmount_below(room)
            end_orphans()
            unmount_below(room)
            remove(room)
            run("sync")


def remove(tree: Path) -> None:
    """Delete a tree. Retry for a second if a process still adds files. Raises Failed if something stays."""
    for _ in range(10):
        shutil.rmtree(tree, ignore_errors=True)
        if not tree.exists():
            return
        time.sleep(0.1)
    raise Failed(f"{tree}: cannot be deleted, something still uses it")


def mount_read_only(source: Path, target: Path, kind: str) -> None:
    """Mount a file directly, without the loop device that mount(8) would add. Raises Failed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), _MS_RDONLY, None):
        raise Failed(f"{source}: cannot be mounted as {kind}: {os.strerror(ctypes.get_errno())}")


def mounts_below(top: Path) -> list[Path]:
    """Return the mount points at or below a directory, the deepest first."""
    table = Path("/proc/self/mountinfo").read_bytes().rstrip(b"\n").split(b"\n")  # a path may hold a carriage return
    points = [Path(os.fsdecode(line.split(b" ")[4].replace(b"\\040", b" "))) for line in table]
    # In the table a mount comes after the mounts that it stands on.
    return [point for point in reversed(points) if point.is_relative_to(top)]


def unmount_below(top: Path) -> None:
    """Unmount everything at or below a directory. Busy mounts are detached.

    Never queries a filesystem that may hang.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for point in mounts_below(top):
        if libc.umount2(os.fsencode(point), 0) and libc.umount2(os.fsencode(point), _MNT_DETACH):
            raise Failed(f"{point}: cannot be unmounted: {os.strerror(ctypes.get_errno())}")


def filesystem_type(path: Path) -> str:
    """Return the type of the filesystem that holds a path, as `stat -f` names it."""
    return run("stat", "-f", "-c", "%T", path).strip()


def used_bytes(*trees: Path) -> int:
    """Return the bytes of trees on their disk. Each hard link counts once; other filesystems do not count."""
    lines = run("du", "-sxc", "--block-size=1", *trees).splitlines()
    return int(lines[-1].split()[0])
