"""All containers of a state directory: their records on disk, and the kept states of deleted ones.

`containers/<id>/` is created under a temporary name, synced and renamed, so a container exists completely or not at
all.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from imgfs.disk.calls import HOST
from imgfs.disk.durable import TEMPORARY, fsync_path, make_directory, write_file
from imgfs.errors import AlreadyExists, Invalid, NotFound, StorageFailed, from_os
from imgfs.execution.records.record import (
    ContainerRecord,
    DeletedContainer,
    decode_deleted,
    no_container,
    now,
)

NEW, GONE = ".new-", ".gone-"
"""Prefixes of the names of unpublished records and of removed records."""
ID_MAX = 128
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_OTHERS = str.maketrans("", "", "_.-")


class ContainerRecords:
    """The containers of one state directory."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "containers"
        self.deleted = state / "deleted" / "containers"
        self.runtime_root = self.directory / ".runtime"
        """Where runtimes keep their state."""

    def ids(self) -> list[str]:
        """Return the IDs of all containers, unsorted. Raises StorageFailed."""
        try:
            return [name for name in os.listdir(self.directory) if is_id(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os(error, "containers") from None

    def find(self, id: str) -> ContainerRecord:
        """Return the record of that ID, which need not exist. Costs the same for any number of containers.

        Raises Invalid.
        """
        check_id(id)
        return ContainerRecord(self.directory / id)

    def get(self, id: str) -> ContainerRecord:
        """Like `find`, but raises NotFound if there is no such container."""
        record = self.find(id)
        if not record.path.is_dir():
            raise no_container(id)
        return record

    def make(self) -> ContainerRecord:
        """Create a record under a temporary name. Raises OSError."""
        for directory in (self.directory, self.deleted, self.runtime_root):
            make_directory(directory)
        record = ContainerRecord(self.directory / f"{NEW}{os.urandom(16).hex()}")
        os.mkdir(record.path, 0o700)
        return record

    def publish(self, record: ContainerRecord, id: str) -> ContainerRecord:
        """Rename a complete record to its ID, durably. Raises AlreadyExists, OSError."""
        named = self.find(id)
        try:
            HOST.rename(record.path, named.path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExists(
                    f"container {id}: exists already; choose another --name, or `imgfs delete {id}`"
                ) from None
            raise
        fsync_path(self.directory)
        return named

    def withdraw(self, record: ContainerRecord) -> ContainerRecord:
        """Rename a record that is being made back to a temporary name. Raises OSError."""
        if record.path.name.startswith(NEW):
            return record
        withdrawn = ContainerRecord(self.directory / f"{NEW}{os.urandom(16).hex()}")
        HOST.rename(record.path, withdrawn.path)
        fsync_path(self.directory)
        return withdrawn

    def forget(self, record: ContainerRecord, *, is_left: bool = False) -> None:
        """Remove a record: rename it out of sight, then delete its files. Raises OSError. Leftovers are removed later.

        With `is_left` the files are kept, and its supervisor deletes them.
        """
        gone = self.directory / f"{GONE}{os.urandom(16).hex()}"
        try:
            HOST.rename(record.path, gone)
        except FileNotFoundError:
            return
        fsync_path(self.directory)
        if not is_left:
            delete_removed(ContainerRecord(gone))

    def keep_deleted(self, record: ContainerRecord, *, is_held: bool = False) -> DeletedContainer:
        """Write the last state of a container durably, before its record is removed. Raises NotFound, OSError.

        `is_held`: see ContainerRecord.status.
        """
        made = DeletedContainer(container=record.container(), status=record.status(is_held=is_held), deleted=now())
        make_directory(self.deleted)
        write_file(self.deleted / f"{record.id}.json", made.encode())
        return made

    def find_deleted(self, id: str) -> DeletedContainer | None:
        """Return the kept state of the last deleted container of that ID, or None. Raises Invalid, StorageFailed."""
        check_id(id)
        try:
            data = (self.deleted / f"{id}.json").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, f"deleted container {id}") from None
        return decode_deleted(data, f"container {id}")

    def user_of(self, key: str) -> ContainerRecord | None:
        """Return the container that owns the active snapshot of that key. Raises TooManyOpen."""
        id = key.rpartition("-")[0]
        if not is_id(id):
            return None
        record = ContainerRecord(self.directory / id)
        try:
            return record if record.container().snapshot == key else None
        except (NotFound, StorageFailed):
            return None

    def rootfs_of(self, key: str) -> Path | None:
        """Return where a container has mounted the active snapshot of that key, or None. Blocks."""
        record = self.user_of(key)
        return record.rootfs if record is not None and os.path.ismount(record.rootfs) else None

    def is_used(self, key: str) -> bool:
        """Return whether a container that has not ended uses the active snapshot of that key. Raises TooManyOpen."""
        record = self.user_of(key)
        try:
            return record is not None and record.status().status != "stopped"
        except (NotFound, StorageFailed):
            return False

    def unfinished(self) -> list[ContainerRecord]:
        """Return the records that are being made, or whose maker was killed. Raises StorageFailed."""
        return self._called(NEW)

    def gone(self) -> list[ContainerRecord]:
        """Return the records that are being removed, or whose remover was killed. Raises StorageFailed."""
        return self._called(GONE)

    def _called(self, beginning: str) -> list[ContainerRecord]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os(error, "containers") from None
        return [ContainerRecord(self.directory / name) for name in names if name.startswith(beginning)]


def delete_removed(record: ContainerRecord) -> None:
    """Delete the files of a removed record. Files that cannot be deleted now are deleted by a later sweep."""
    shutil.rmtree(record.path, ignore_errors=True)  # not through Disk: the rename to GONE was the removal


def new_key(id: str) -> str:
    """Return a unique key for the snapshot of a container."""
    return f"{id}-{os.urandom(4).hex()}"


def is_id(id: str) -> bool:
    """Return whether this is a valid container ID: valid for runtimes, file names and host names."""
    return len(id) <= ID_MAX and id[:1] in _LETTERS and _LETTERS.issuperset(id.translate(_OTHERS))


def check_id(id: str) -> None:
    """Raise Invalid unless this is a valid container ID."""
    if not is_id(id):
        raise Invalid(
            f"container {id[:ID_MAX]!r}: expected up to {ID_MAX} letters, digits, `_`, `.` and `-`, "
            "a letter or a digit first"
        )


_SUFFIX = ".json"
_WRITING_SECONDS = 60.0
"""Seconds that a write may take. Supervisors write here, too."""


class DeletedContainers:
    """`<state>/deleted/containers/`. Every call blocks and may raise StorageFailed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ids(self) -> list[str]:
        """Return the IDs of all deleted containers, unsorted."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os(error, "deleted containers") from None
        return [
            name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and is_id(name.removesuffix(_SUFFIX))
        ]

    def read(self, id: str) -> bytes:
        """Return the kept state of a deleted container as JSON. Raises NotFound."""
        try:
            return self._path(id).read_bytes()
        except OSError as error:
            raise _explained(error, id) from None

    def stat(self, id: str) -> os.stat_result:
        """Return the size of the kept state, and the time of the deletion as mtime. Raises NotFound."""
        try:
            return os.stat(self._path(id))
        except OSError as error:
            raise _explained(error, id) from None

    def write(self, id: str, data: bytes) -> None:
        """Keep `data` durably. Raises NoSpace."""
        try:
            make_directory(self._directory)
            write_file(self._path(id), data)
        except OSError as error:
            raise _explained(error, id) from None

    def remove(self, id: str) -> None:
        """Remove a kept state. Raises NotFound."""
        try:
            HOST.unlink(self._path(id))
        except OSError as error:
            raise _explained(error, id) from None

    def older(self, moment: int) -> list[tuple[str, int]]:
        """Return what was deleted before `moment` (ns since the epoch): sorted IDs with their disk usage in bytes."""
        found: list[tuple[str, int]] = []
        for id in sorted(self.ids()):
            with suppress(NotFound):
                status = self.stat(id)
                if status.st_mtime_ns < moment:
                    found.append((id, status.st_blocks * 512))
        return found

    def sweep(self) -> None:
        """Remove unfinished writes, except those that may still be in progress. Raises ReadOnly."""
        try:
            for entry in os.scandir(self._directory):
                if entry.name.startswith(TEMPORARY) and time.time() - entry.stat().st_mtime > _WRITING_SECONDS:
                    HOST.unlink(Path(entry.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise from_os(error, "deleted containers") from None

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}{_SUFFIX}"


def _explained(error: OSError, id: str) -> Exception:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"deleted container {id}: no such record")
    return from_os(error, f"deleted container {id}")
