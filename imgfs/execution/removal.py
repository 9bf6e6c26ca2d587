"""Removes what is left of a container: runtime state, mounts, and everything of a container that never ran.

Every snapshot has a unique key, so removing a snapshot twice is harmless. The daemon deletes containers that ran
(fs/containers/deleting.py).
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
from imgfs.execution.records.record import Container, ContainerRecord
from imgfs.execution.records.records import ContainerRecords, delete_removed
from imgfs.execution.runtimes.runtime import OciRuntime, RuntimeFailed
from imgfs.kernel.mounts import mounts_below, unmount

BUSY_SECONDS = 5.0
"""Seconds in which the mounts of an ended container must go. They go with the last process that uses them."""
_POLL = 0.02
_ABANDONED_SECONDS = 60.0
"""Age at which a record without container.json counts as abandoned.

The maker of a record holds its lock once container.json exists.
"""


class _StateDocument(msgspec.Struct):
    """The part of the tree's state.json that is needed here."""

    state: str


def remove_snapshot(records: ContainerRecords, container: Container, patience: float = BUSY_SECONDS) -> None:
    """Remove the container's snapshot through the mount. A missing snapshot is no error.

    Waits up to `patience` seconds while the snapshot is busy, because the kernel drops a container's mounts only after
    it has reaped the processes. Raises Busy, StorageFailed, and NotFound if the tree of this state directory is not
    mounted there.
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


def delete_through_mount(container: Container, place: int) -> OSError | None:
    """Delete a container through the mount. Return the error if it still exists, or None if it is deleted. Blocks.

    `place` is the open directory of its record. The ID in the tree may by now belong to a newer container, or to
    another state directory that is mounted there. Neither is deleted.
    """
    try:
        if not is_listed(container, place):
            return None
        os.lstat(f"{container.mountpoint}/snapshots/active/{container.snapshot}")
        os.rmdir(f"{container.mountpoint}/containers/{container.id}")
    except OSError as error:
        return error if is_listed(container, place) else None
    return None


def is_listed(container: Container, place: int) -> bool:
    """Return whether the open directory of a container's record still has the container's ID as its name."""
    return path_of(place).name == container.id


def path_of(place: int) -> Path:
    """Return the current path of an open directory."""
    return Path(os.readlink(f"/proc/self/fd/{place}"))


def discard_runtime(records: ContainerRecords, record: ContainerRecord, container: Container) -> None:
    """Make the runtime forget a container whose supervisor did not: the supervisor was killed, or the machine crashed.

    Also unmounts its rootfs. Blocks.
    """
    if (records.runtime_root / container.runtime_id).exists():
        with suppress(RuntimeFailed, NotFound):
            runtime_of(records, record, container).delete(container.runtime_id, force=True)
    remove_leftovers(records, container)
    unmount_rootfs(record)


def remove_leftovers(records: ContainerRecords, container: Container) -> None:
    """Remove what a killed runtime does not know about: processes, cgroups, its state directory and mounts in it.

    Blocks.
    """
    kill_cgroups(container.snapshot)
    place = records.runtime_root / container.runtime_id
    if not place.exists():
        return
    for mount in mounts_below(str(place)):
        with suppress(ImgfsError):
            unmount(mount.mountpoint, detach=True)
    shutil.rmtree(place, ignore_errors=True)  # not through Disk: the runtime keeps nothing there over a crash


def unmount_rootfs(record: ContainerRecord) -> None:
    """Unmount a container's rootfs, also while a process outside the container uses it. Blocks."""
    with suppress(NotFound):
        while True:
            unmount(str(record.rootfs), detach=True)


def runtime_of(
    records: ContainerRecords, record: ContainerRecord, container: Container, deadline: float = 60.0
) -> OciRuntime:
    """Return the runtime that runs a container."""
    runtime = container.runtime
    return OciRuntime(runtime.name, runtime.path, records.runtime_root, record.path / "runtime.log", deadline)


def remove_abandoned(records: ContainerRecords, mountpoint: str) -> None:
    """Remove the containers whose start or removal was interrupted by a kill. Blocks.

    `mountpoint` is where the tree is mounted now; it may have been elsewhere at the start. A container that is being
    made is locked by its maker and is skipped. What cannot be removed now is retried the next time.
    """
    for record in records.unfinished():
        with suppress(ImgfsError, OSError):
            _remove_abandoned(records, record, mountpoint)
    finish_removals(records)


def finish_removals(records: ContainerRecords) -> None:
    """Finish removing renamed records and their runtime state, unless another process is doing so. Blocks."""
    for record in records.gone():
        with suppress(ImgfsError, OSError):
            _finish_gone(records, record)


def _remove_abandoned(records: ContainerRecords, record: ContainerRecord, mountpoint: str) -> None:
    if not (record.path / "container.json").exists():
        if time.time() - record.path.stat().st_mtime > _ABANDONED_SECONDS:
            records.forget(record)
        return
    lock = os.open(record.lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        container = msgspec.structs.replace(record.container(), mountpoint=mountpoint)
        remove_unstarted(records, record, container, patience=0)
    finally:
        os.close(lock)


def _finish_gone(records: ContainerRecords, record: ContainerRecord) -> None:
    """Raises OSError if another process holds the lock."""
    lock = os.open(record.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A damaged record names no runtime. If this process has too many open files, the error propagates and the
        # record, which names the runtime, is kept for the next try.
        with suppress(NotFound, StorageFailed):
            discard_runtime(records, record, record.container())
        unmount_rootfs(record)
        delete_removed(record)
    finally:
        os.close(lock)


def remove_unstarted(
    records: ContainerRecords, record: ContainerRecord, container: Container, patience: float = BUSY_SECONDS
) -> None:
    """Remove a container that never ran; nothing of it is kept. Raises the errors of `remove_snapshot`, OSError.

    The record loses its name before the snapshot is removed, so that `remove_abandoned` finds it after a kill.
    """
    unmount_rootfs(record)
    record = records.withdraw(record)
    remove_snapshot(records, container, patience)
    records.forget(record)


def _is_mounted(records: ContainerRecords, mountpoint: str) -> bool:
    """Return whether the tree of the records' state directory is mounted there."""
    try:
        with open(f"{mountpoint}/.imgfs/state.json", "rb") as file:
            document = msgspec.json.decode(file.read(), type=_StateDocument)
        return os.path.samefile(document.state, records.directory.parent)
    except (OSError, msgspec.MsgspecError):
        return False


def _unmounted(container: Container) -> str:
    at = container.mountpoint
    return f"{at}: its tree is not mounted there, so the snapshot stays; `imgfs mount {at}`, then `imgfs delete` it"
