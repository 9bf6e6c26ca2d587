"""The directories of unfinished writes: creation, moves, removal, and recovery after a crash.

A crash during a change leaves a whole directory or none. Recovery runs once, at the start, before requests are served.
It neither waits for the network nor hashes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from imgfs.content.ingests.meta import IngestMeta, decode, write_again, write_first
from imgfs.content.ingests.refs import ref_id
from imgfs.disk.calls import Disk
from imgfs.disk.durable import DAMAGED, sweep, temporary_name
from imgfs.errors import Malformed


def make(disk: Disk, path: Path, meta: IngestMeta) -> None:
    """Create an empty ingest; a power cut may lose all of it. On OSError nothing is left.

    An existing directory of that name is the rest of a failed removal; it is deleted.
    """
    try:
        disk.mkdir(path)
    except FileExistsError:
        drop(disk, path)
        disk.mkdir(path)
    try:
        os.close(disk.create(path / "data"))
        write_first(disk, path / "meta", meta)
    except OSError:
        _empty(disk, path)
        raise


def remove(disk: Disk, path: Path) -> None:
    """Remove an ingest durably. Raises OSError. A crash leaves a temporary name, which the next start sweeps."""
    temporary = path.with_name(temporary_name())
    disk.rename(path, temporary)
    disk.fsync_directory(path.parent)
    _empty(disk, temporary)


def drop(disk: Disk, path: Path) -> None:
    """Remove an ingest, not durably, because its return after a power cut is harmless. Raises OSError."""
    temporary = path.with_name(temporary_name())
    disk.rename(path, temporary)
    _empty(disk, temporary)


def remove_committed(disk: Disk, path: Path) -> None:
    """Remove what is left of an ingest whose data became a blob. The next start removes what this call cannot."""
    _empty(disk, path, ("meta",))


def move(disk: Disk, old: Path, new: Path) -> None:
    """Rename an ingest's directory, not durably.

    An existing directory `new` has no owner and is removed. Raises OSError.
    """
    if new.exists():
        remove(disk, new)
    disk.rename(old, new)


def _empty(disk: Disk, path: Path, names: tuple[str, ...] = ("data", "meta")) -> None:
    for name in names:
        with suppress(OSError):
            disk.unlink(path / name)
    with suppress(OSError):
        disk.rmdir(path)


_log = logging.getLogger("imgfs.content.ingest")


@dataclass(frozen=True, slots=True)
class RecoveredIngest:
    """An ingest that can be resumed at `offset`."""

    path: Path
    meta: IngestMeta
    offset: int


def recover(disk: Disk, directory: Path, era: str) -> Iterator[RecoveredIngest]:
    """Repair every ingest below `directory` and yield it.

    A directory that is not a valid ingest is logged and removed, without an effect on the others: a power cut leaves
    such directories, and nothing was promised about them. A disk error removes nothing. An ingest that cannot be read
    stays on disk; one that cannot be repaired resumes at its last record and is repaired by the next start. Directories
    that a repair set aside are not touched.
    """
    for path in ingest_directories(directory):
        try:
            sweep(path)
            found = read(path, era)
            if found.offset > found.meta.durable:
                _forget_cached(path / "data")
        except (FileNotFoundError, Malformed) as error:
            _log.warning("ingest removed", extra={"path": str(path), "error": str(error)})
            with suppress(OSError):  # the next start tries again
                drop(disk, path)
        except OSError as error:
            _log.warning("ingest left alone", extra={"path": str(path), "error": str(error)})
        else:
            yield _mend(disk, found, era)


def ingest_directories(directory: Path) -> list[Path]:
    """Return the directories of unfinished writes, without those that a repair set aside."""
    found = (entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
    return sorted(Path(entry.path) for entry in found if not entry.name.endswith(DAMAGED))


def read(path: Path, era: str) -> RecoveredIngest:
    """Read an ingest's directory without changing it. Raises OSError and Malformed."""
    meta = decode((path / "meta").read_bytes())
    status = (path / "data").stat()
    if status.st_nlink != 1:
        raise Malformed("ingest data: has a second hard link, so it may be a stored blob; the ingest cannot be resumed")
    offset = status.st_size if meta.era == era else min(meta.durable, status.st_size)
    return RecoveredIngest(path, msgspec.structs.replace(meta, updated=max(meta.updated, status.st_mtime_ns)), offset)


def _forget_cached(data: Path) -> None:
    """Drop the page cache of the data, so that later hashes read what the disk has. Raises OSError.

    If a sync failed while its process was killed, no process received the error and no later sync fails again: the page
    cache then has bytes that the disk does not have. Dirty pages stay, because a later sync still reports their error.
    """
    file = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _mend(disk: Disk, found: RecoveredIngest, era: str) -> RecoveredIngest:
    try:
        if found.meta.era != era or found.offset < found.meta.durable:
            found = _cut(disk, found, era)
        final = found.path.with_name(ref_id(found.meta.ref))
        if final != found.path:
            found = _finish_rename(disk, found, final)
    except OSError as error:
        extra = {"ref": found.meta.ref, "error": str(error)}
        _log.warning("ingest is repaired at the next start", extra=extra)
    return found


def _cut(disk: Disk, found: RecoveredIngest, era: str) -> RecoveredIngest:
    """After a power cut, keep only synced bytes, and record that no later byte is durable.

    The era is recorded last, so a crash in this function makes the next start cut again.
    """
    file = disk.open(found.path / "data")
    try:
        disk.truncate(file, found.offset)
        disk.fsync(file)
    finally:
        os.close(file)
    meta = msgspec.structs.replace(found.meta, era=era, durable=found.offset)
    write_again(disk, found.path / "meta", meta)
    disk.fsync_directory(found.path.parent)
    return RecoveredIngest(found.path, meta, found.offset)


def _finish_rename(disk: Disk, found: RecoveredIngest, final: Path) -> RecoveredIngest:
    """Complete a rename: the record with the new ref is on disk, the directory still has its old name."""
    move(disk, found.path, final)
    disk.fsync_directory(final.parent)
    return RecoveredIngest(final, found.meta, found.offset)
