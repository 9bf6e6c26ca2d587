"""The directories of unfinished writes: made, moved and removed; a crash in between leaves a whole one or none."""

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
    """Make an empty ingest; a power cut may lose it as a whole. Raises OSError, and leaves nothing.

    A directory of that name is what a failed removal left: its ref is gone.
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
    """Take an ingest away at once and for good; raises OSError. What a crash leaves under a temporary name is swept."""
    temporary = path.with_name(temporary_name())
    disk.rename(path, temporary)
    disk.fsync_directory(path.parent)
    _empty(disk, temporary)


def drop(disk: Disk, path: Path) -> None:
    """Take an ingest away whose coming back after a power cut harms nobody. Raises OSError."""
    temporary = path.with_name(temporary_name())
    disk.rename(path, temporary)
    _empty(disk, temporary)


def remove_committed(disk: Disk, path: Path) -> None:
    """Remove what is left of an ingest whose data is a blob now. What stays is removed at the next start."""
    _empty(disk, path, ("meta",))


def move(disk: Disk, old: Path, new: Path) -> None:
    """Give an ingest's directory another name, not durably; what lies there is nobody's any more. Raises OSError."""
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
    """Mend every ingest below `directory`; what is none is logged and removed, and harms no other.

    A power cut leaves such ones, of which nothing was promised. A disk that fails or is full takes nothing away: what
    cannot be read now is left alone, what cannot be mended now is resumed where its last record says, and mended at the
    next start. What repair set aside is left alone.
    """
    for path in unfinished(directory):
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


def unfinished(directory: Path) -> list[Path]:
    """The directories of unfinished writes, without those that were set aside."""
    found = (entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
    return sorted(Path(entry.path) for entry in found if not entry.name.endswith(DAMAGED))


def read(path: Path, era: str) -> RecoveredIngest:
    """What an ingest's directory says, without changing it. Raises OSError and Malformed."""
    meta = decode((path / "meta").read_bytes())
    status = (path / "data").stat()
    if status.st_nlink != 1:
        raise Malformed("ingest data: has a second name, so it may be a stored blob; the ingest cannot be resumed")
    offset = status.st_size if meta.era == era else min(meta.durable, status.st_size)
    return RecoveredIngest(path, msgspec.structs.replace(meta, updated=max(meta.updated, status.st_mtime_ns)), offset)


def _forget_cached(data: Path) -> None:
    """What is hashed from now on is what the disk has. Raises OSError.

    A sync that failed while its process was killed has told nobody, and no later one fails again: memory then has bytes
    that the disk does not. Those that are still to be written stay in memory, as their failure is still to be told.
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
        told = {"ref": found.meta.ref, "error": str(error)}
        _log.warning("ingest is mended at the next start", extra=told)
    return found


def _cut(disk: Disk, found: RecoveredIngest, era: str) -> RecoveredIngest:
    """After a power cut only synced bytes count, and no record may vouch for bytes that are still to come.

    The era is recorded last, so that a crash in here cuts again.
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
    """The record of a new ref is the renaming; the directory follows."""
    move(disk, found.path, final)
    disk.fsync_directory(final.parent)
    return RecoveredIngest(final, found.meta, found.offset)
