"""The containers of one state directory, for the daemon: it reads what supervisors write, and deletes containers.

The caller decides the order of the steps of a deletion, because it knows the snapshots (fs/containers/deleting.py).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec
import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import Busy, ImgfsError, NoSpace, NotFound, StorageFailed, from_os
from imgfs.execution.records.holdings import ContainerSummary, Holdings
from imgfs.execution.records.record import Container, ContainerRecord, ContainerStatus, encode, is_alive
from imgfs.execution.records.records import ContainerRecords, DeletedContainers
from imgfs.execution.removal import discard_runtime, finish_removals

_OUTPUT = ("log", "log.1")
_log = logging.getLogger("imgfs.execution")


class ContainersOptions(msgspec.Struct, frozen=True):
    """`[plugins.containers.local]`."""

    keep_deleted_days: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=36500,
            description="Days for which the last state of a deleted container is kept. Then `imgfs gc` removes it.",
        ),
    ] = 7.0


@dataclass(frozen=True, slots=True)
class FoundContainer:
    """The current state of a container. `changed` is the time of its last change in ns since the epoch."""

    record: ContainerRecord
    container: Container
    status: ContainerStatus
    changed: int


@dataclass(frozen=True, slots=True)
class EndedContainer:
    """A container that does not run. `made` is None if container.json cannot be read."""

    made: Container | None
    is_leaving: bool
    """Whether the supervisor still runs and removes the runtime's state itself: it asked for this deletion (--rm)."""


class Containers:
    """All containers of a state directory. Only `holdings` is cached in memory. Every call may raise StorageFailed."""

    def __init__(self, records: ContainerRecords, keep_deleted: float) -> None:
        """`keep_deleted`: seconds for which the end of a deleted container is kept."""
        self.records = records
        self.holdings = Holdings(self.records)
        self.deleted = DeletedContainers(self.records.deleted)
        self._keep_deleted = keep_deleted

    async def ids(self) -> list[str]:
        """Return the IDs of all containers, sorted. The kernel has cached what a stat of each container needs."""
        return await run_disk(self._ids)

    def read(self, id: str) -> FoundContainer:
        """Read one container. The cost does not depend on the number of containers. Blocks. Raises NotFound."""
        record = self.records.find(id)
        try:
            return FoundContainer(record, record.container(), record.status(), self.changed(id))
        except NotFound:
            if record.path.is_dir():
                raise StorageFailed(f"container {id}: its record is incomplete; delete it") from None
            raise

    async def user_of(self, snapshot: str) -> str | None:
        """Return the ID of the container that runs on the active snapshot of that key, or None."""
        return await run_disk(self._user_of, snapshot)

    def changed(self, id: str) -> int:
        """Return when the status of a container changed, in ns since the epoch. Blocks for a stat. Raises NotFound."""
        path = os.fspath(self.records.find(id).path)
        for name in ("status.json", "container.json", "."):  # a damaged container has a time, too
            try:
                return os.stat(f"{path}/{name}").st_mtime_ns
            except FileNotFoundError:
                continue
            except OSError as error:
                raise from_os(error, f"container {id}") from None
        raise _missing(id)

    @asynccontextmanager
    async def ended(self, id: str) -> AsyncGenerator[EndedContainer]:
        """Prevent the start of a container that does not run, until the block ends.

        Raises NotFound, and Busy while the container runs.
        """
        lock, ended = await run_disk(self._lock_ended, id)
        try:
            yield ended
        finally:
            os.close(lock)

    async def discard_runtime(self, id: str, container: Container) -> None:
        """Make the runtime forget a container whose supervisor was killed. Call this within `ended`."""
        record = self.records.find(id)
        await trio.to_thread.run_sync(discard_runtime, self.records, record, container)

    async def keep(self, id: str) -> None:
        """Keep the last state of a container durably before it is deleted. Call this within `ended`. Raises NoSpace."""
        await run_disk(self._keep, id)

    async def forget(self, id: str, *, is_left: bool = False) -> None:
        """Remove a container's record. Call this within `ended`.

        The container is deleted once its directory is renamed.

        With `is_left` the supervisor removes the renamed files.
        """
        await run_disk(partial(self._forget, id, is_left=is_left))

    async def forget_deleted(self, id: str) -> None:
        """Remove the kept state of a deleted container. Raises NotFound."""
        await run_disk(self.deleted.remove, id)

    async def outlived(self) -> list[tuple[str, int]]:
        """Return the deleted containers whose retention has passed: sorted IDs, and the disk usage of each in bytes."""
        return await run_disk(self.deleted.older, time.time_ns() - int(self._keep_deleted * 1e9))

    async def sweep(self) -> None:
        """Remove what killed processes left of deleted containers. The daemon calls this when it starts."""
        await run_disk(self.deleted.sweep)
        await trio.to_thread.run_sync(finish_removals, self.records)

    async def unfinished(self) -> list[str]:
        """Return the IDs of ended containers that still have to be deleted.

        Their deletion was interrupted, or they were started with --rm and ended while no daemon ran.
        """
        return await run_disk(self._unfinished, await self.holdings.containers())

    def _ids(self) -> list[str]:
        ids = sorted(self.records.ids())
        for id in ids:
            with suppress(ImgfsError):
                self.changed(id)
        return ids

    def _user_of(self, snapshot: str) -> str | None:
        record = self.records.user_of(snapshot)
        return record.id if record is not None and self.records.is_used(snapshot) else None

    def _lock_ended(self, id: str) -> tuple[int, EndedContainer]:
        record = self.records.get(id)
        if record.is_supervised() and not _is_end_written(record):
            raise _end_not_written(id) if _has_died(record) else _running(id)
        lock, is_leaving = record.share_lock()
        try:
            if _is_orphaned(record):
                raise _running(id)
            return lock, EndedContainer(_read_container(record), is_leaving)
        except BaseException:
            os.close(lock)
            raise

    def _keep(self, id: str) -> None:
        record = self.records.get(id)
        try:
            self._keep_known(record)
        except NoSpace:
            # Deleting frees space: the logs are deleted in any case, and their blocks are enough for the kept state.
            for name in _OUTPUT:
                (record.path / name).unlink(missing_ok=True)  # not through Disk: its record goes next
            self._keep_known(record)

    def _keep_known(self, record: ContainerRecord) -> None:
        try:
            self.records.keep_deleted(record, is_held=True)
        except (NotFound, StorageFailed) as error:
            _log.warning(
                "only the reason is kept of a damaged container", extra={"id": record.id, "reason": error.message}
            )
            self.deleted.write(record.id, encode({"id": record.id, "reason": error.message}))
        except OSError as error:
            raise from_os(error, f"container {record.id}") from None

    def _forget(self, id: str, *, is_left: bool) -> None:
        try:
            self.records.forget(self.records.get(id), is_left=is_left)
        except OSError as error:
            raise from_os(error, f"container {id}") from None

    def _is_live(self, id: str) -> bool:
        record = self.records.find(id)
        return record.is_supervised() or _is_orphaned(record)

    def _unfinished(self, made: Mapping[str, ContainerSummary]) -> list[str]:
        deleted = {id for id in self.deleted.ids() if id in made and self._is_of(id, made[id].created)}
        wanted = (id for id, one in made.items() if one.remove or id in deleted)
        return sorted(id for id in wanted if not self._is_live(id))

    def _is_of(self, id: str, created: str) -> bool:
        """Return whether the kept state under this ID belongs to this very container. An ID may be reused."""
        try:
            kept = self.records.find_deleted(id)
        except StorageFailed:
            return False
        return kept is not None and kept.container.created == created


def _is_end_written(record: ContainerRecord) -> bool:
    """Return whether the supervisor has written how the container ended and is about to exit."""
    try:
        return record.written_status().status == "stopped"
    except (NotFound, StorageFailed):
        return False


def _has_died(record: ContainerRecord) -> bool:
    """Return whether the recorded process has ended. The supervisor is about to write how it ended."""
    written = record.written_status()
    return written.status == "running" and not is_alive(written)


def _is_orphaned(record: ContainerRecord) -> bool:
    """Return whether the container's process still runs although its supervisor was killed."""
    try:
        return record.status(is_held=True).status == "running"
    except (NotFound, StorageFailed):
        return False


def _read_container(record: ContainerRecord) -> Container | None:
    try:
        return record.container()
    except (NotFound, StorageFailed):
        return None


def _running(id: str) -> Busy:
    return Busy(f"container {id}: runs; `imgfs kill {id}` ends it, `imgfs delete -f {id}` ends and deletes it")


def _end_not_written(id: str) -> Busy:
    return Busy(
        f"container {id}: has ended, but its status is not written yet; try again, and check that the disk of "
        "the state directory is not full or read-only"
    )


def _missing(id: str) -> NotFound:
    return NotFound(f"container {id}: does not exist; `imgfs ps -a` lists all")
