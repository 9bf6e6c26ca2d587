"""Taking away what is left of a container: what its runtime keeps, its mount; all of it where it never ran.

A snapshot has a key that no other had, so removing it twice harms nobody. Containers that ran are deleted by the
daemon (fs/containers/deleting.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from imgfs.errors import Busy, ImgfsError, NotFound, StorageFailed
from imgfs.execution.cgroups import kill_cgroups
from imgfs.execution.records.record import Container
from imgfs.execution.records.records import ContainerRecord, ContainerRecords, remove_gone
from imgfs.execution.runtimes.runtime import OciRuntime, RuntimeFailed
from imgfs.kernel.mounts import mounts_below, unmount

GOING_SECONDS = 5.0
"""How long the mounts of a container that has ended may take to go: they go with the last process in them."""
_POLL = 0.02
_BEGINNING_SECONDS = 60.0
"""How old a record without a word in it is before it is taken for a dead one's. One with words has its lock held."""


class _StateDocument(msgspec.Struct):
    """What a tree says of its daemon."""

    state: str


def remove_snapshot(records: ContainerRecords, container: Container, patience: float = GOING_SECONDS) -> None:
    """Remove the snapshot through the mount; one that is gone is fine. Raises Busy, StorageFailed, and NotFound where
    the tree that is mounted there, if any, is not that of the records' state directory.

    Waits for up to `patience` seconds while it is busy: the kernel lets go of a container's mounts when it has buried
    its processes.
    """
    path = f"{container.mountpoint}/snapshots/active/{container.snapshot}"
    deadline = time.monotonic() + patience
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            if not _is_mounted(records, container.mountpoint):
                raise NotFound(_unmounted(container)) from None
            return
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise NotFound(_unmounted(container)) from None
            if error.errno != errno.EBUSY:
                raise StorageFailed(f"{path}: cannot be removed: {error.strerror}; see the log of imgfs") from None
            if time.monotonic() > deadline:
                raise Busy(f"{path}: is in use; end the processes in it") from None
            time.sleep(_POLL)


def delete_by_tree(container: Container, place: int) -> OSError | None:
    """Delete a container through the mount; why it is there still, or None when it is out of sight. Blocks.

    `place` is its record's directory, open. What has its id in the tree may be another one by now, where somebody else
    was faster, or is another state directory's, where one is mounted there since: neither is touched.
    """
    try:
        if not is_named(container, place):
            return None
        os.lstat(f"{container.mountpoint}/snapshots/active/{container.snapshot}")
        os.rmdir(f"{container.mountpoint}/containers/{container.id}")
    except OSError as error:
        return error if is_named(container, place) else None
    return None


def is_named(container: Container, place: int) -> bool:
    """Whether the open directory of a container's record is not out of sight."""
    return path_of(place).name == container.id


def path_of(place: int) -> Path:
    """Where an open directory is now."""
    return Path(os.readlink(f"/proc/self/fd/{place}"))


def discard_runtime(records: ContainerRecords, record: ContainerRecord, container: Container) -> None:
    """Have the runtime forget a container whose supervisor could not tell it: it was killed, or the machine was.

    Takes the mount of its rootfs away too. Blocks.
    """
    if (records.runtime_root / container.runtime_id).exists():
        with suppress(RuntimeFailed, NotFound):
            runtime_of(records, record, container).delete(container.runtime_id, force=True)
    clear_leavings(records, container)
    unmount_rootfs(record)


def clear_leavings(records: ContainerRecords, container: Container) -> None:
    """Remove what a runtime that was killed does not know of itself: processes, cgroups, its directory, mounts in it.

    Blocks.
    """
    kill_cgroups(container.snapshot)
    place = records.runtime_root / container.runtime_id
    if not place.exists():
        return
    for mount in mounts_below(str(place)):
        with suppress(ImgfsError):
            unmount(mount.mountpoint, detach=True)
    shutil.rmtree(place, ignore_errors=True)


def unmount_rootfs(record: ContainerRecord) -> None:
    """Take the mount of a container's rootfs away, also while somebody from outside is in it. Blocks."""
    with suppress(NotFound):
        while True:
            unmount(str(record.rootfs), detach=True)


def runtime_of(
    records: ContainerRecords, record: ContainerRecord, container: Container, deadline: float = 60.0
) -> OciRuntime:
    """The runtime that has a container."""
    runtime = container.runtime
    return OciRuntime(runtime.name, runtime.path, records.runtime_root, record.path / "runtime.log", deadline)


def collect(records: ContainerRecords, mountpoint: str) -> None:
    """Take away what was begun by somebody who was killed before the container had its name, or after. Blocks.

    `mountpoint` is where the tree is now, and not where it was when that was begun.
    What is being made is locked by whoever makes it. What cannot be taken away now is tried again the next time.
    """
    for record in records.unfinished():
        with suppress(ImgfsError, OSError):
            _collect(records, record, mountpoint)
    collect_gone(records)


def collect_gone(records: ContainerRecords) -> None:
    """Finish removing what is out of sight already, with what its runtime keeps, where nobody is at it. Blocks."""
    for record in records.gone():
        with suppress(ImgfsError, OSError):
            _finish_gone(records, record)


def _collect(records: ContainerRecords, record: ContainerRecord, mountpoint: str) -> None:
    if not (record.path / "container.json").exists():
        if time.time() - record.path.stat().st_mtime > _BEGINNING_SECONDS:
            records.forget(record)
        return
    lock = os.open(record.lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        container = msgspec.structs.replace(record.container(), mountpoint=mountpoint)
        unmake(records, record, container, patience=0)
    finally:
        os.close(lock)


def _finish_gone(records: ContainerRecords, record: ContainerRecord) -> None:
    """Raises OSError where somebody else is at it."""
    lock = os.open(record.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Of a damaged one nobody knows; who can open no more files may know later, and what says so goes last.
        with suppress(NotFound, StorageFailed):
            discard_runtime(records, record, record.container())
        unmount_rootfs(record)
        remove_gone(record)
    finally:
        os.close(lock)


def unmake(
    records: ContainerRecords, record: ContainerRecord, container: Container, patience: float = GOING_SECONDS
) -> None:
    """Take away a container that never ran, of which nothing is kept. Raises as `remove_snapshot`, OSError.

    It has no name any more when its snapshot goes: who is killed in between leaves what `collect` knows.
    """
    unmount_rootfs(record)
    record = records.withdraw(record)
    remove_snapshot(records, container, patience)
    records.forget(record)


def _is_mounted(records: ContainerRecords, mountpoint: str) -> bool:
    """Whether what is mounted there is the tree of the records' state directory."""
    try:
        with open(f"{mountpoint}/.imgfs/state.json", "rb") as file:
            told = msgspec.json.decode(file.read(), type=_StateDocument)
        return os.path.samefile(told.state, records.directory.parent)
    except (OSError, msgspec.MsgspecError):
        return False


def _unmounted(container: Container) -> str:
    at = container.mountpoint
    return f"{at}: its tree is not mounted there, so the snapshot stays; `imgfs mount {at}`, then `imgfs delete` it"
