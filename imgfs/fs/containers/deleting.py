"""Delete a container: first write how it ended, then remove its snapshot, then its record.

After a kill in between, the next start continues. After a failure in between, the container is as before.
"""

from __future__ import annotations

import logging
import time

import trio

from imgfs.errors import Busy, ImgfsError
from imgfs.execution.containers import Containers
from imgfs.execution.removal import BUSY_SECONDS
from imgfs.failures import Failures
from imgfs.fs.caller import Caller
from imgfs.fs.subsystems import ContainerSubsystems
from imgfs.rootfs.places import diff_of, rootfs_of
from imgfs.snapshots.ids import active_id, subject

_POLL_FIRST, _POLL_MOST = 0.001, 0.02
_log = logging.getLogger("imgfs.execution")


async def delete(subsystems: ContainerSubsystems, id: str, caller: Caller) -> None:
    """Delete an ended container with its snapshot.

    Raises NotFound, NoSpace, StorageFailed, Busy while either is in use.

    After an error the container is as before. If the caller is interrupted, it may still exist or be gone.
    """
    await caller.wait(lambda: subsystems.works.join(("container", id), lambda: _delete(subsystems, id)))


async def finish_deletions(subsystems: ContainerSubsystems) -> None:
    """Finish deletions that a killed daemon left, and delete containers with `--rm` that ended without a daemon."""
    await subsystems.containers.sweep()
    for id in await subsystems.containers.unfinished():
        try:
            await subsystems.works.join(("container", id), lambda id=id: _delete(subsystems, id))
        except ImgfsError as error:
            _log.warning("container could not be deleted; delete it by hand", extra={"id": id, "reason": error.message})


async def check_unused(containers: Containers, failures: Failures, key: str) -> None:
    """Raise Busy if a running container uses the active snapshot. The kernel's EBUSY does not cover its mounts."""
    id, user = active_id(key), await containers.user_of(key)
    if user is not None:
        error = Busy(
            f"{subject(id)}: container {user} uses it; `imgfs delete -f {user}` stops the container and removes both"
        )
        failures.note(f"snapshots/{id}", error)
        raise error


async def _delete(subsystems: ContainerSubsystems, id: str) -> None:
    with subsystems.failures.noting(f"containers/{id}"):
        async with subsystems.containers.ended(id) as ended:
            if ended.made is not None and not ended.is_leaving:
                await subsystems.containers.discard_runtime(id, ended.made)
            snapshot = active_id(ended.made.snapshot) if ended.made is not None else None
            if snapshot is None or subsystems.snapshots.find_own(snapshot) is None:
                await _take(subsystems, id, None, is_left=ended.is_leaving)
                return
            with subsystems.rootfs.places.closed(rootfs_of(snapshot), diff_of(snapshot)):
                await _leave(subsystems, id, snapshot, for_good=ended.is_leaving)
                await _take(subsystems, id, snapshot, is_left=ended.is_leaving)


async def _leave(subsystems: ContainerSubsystems, id: str, snapshot: str, *, for_good: bool) -> None:
    """Unmount the snapshot. Raises Busy before anything is written.

    The kernel may not have removed the mounts of a container that has just ended, so this waits for them. With
    `for_good` only mounts in this tree matter, because the container's own mounts go with its process.
    """
    going, pause = subsystems.containers.changed(id) / 1e9 + BUSY_SECONDS, _POLL_FIRST
    while True:
        try:
            await subsystems.rootfs.users.leave(snapshot, for_good=for_good)
            return
        except Busy:
            if not time.time() < going < time.time() + 2 * BUSY_SECONDS:
                raise
        await trio.sleep(pause)
        pause = min(2 * pause, _POLL_MOST)


async def _take(subsystems: ContainerSubsystems, id: str, snapshot: str | None, *, is_left: bool) -> None:
    with trio.CancelScope(shield=True):
        await subsystems.containers.keep(id)
        try:
            if snapshot is not None:
                await subsystems.snapshots.remove(snapshot)
            await subsystems.containers.forget(id, is_left=is_left)
        except BaseException:
            # Not reverted after the snapshot is removed: the container could not be started again.
            if snapshot is None or subsystems.snapshots.find_own(snapshot) is not None:
                await subsystems.containers.forget_deleted(id)
            raise
