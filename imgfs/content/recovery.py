"""What is left of unfinished writes after a crash: found, cut to what can be believed, or removed.

Runs once, at the start, before anything is served; nothing here waits for the network or hashes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from imgfs.content.disk import Disk
from imgfs.content.durable import DAMAGED, aside_name, sweep
from imgfs.content.meta import Meta, decode, write_again
from imgfs.content.refs import ref_id
from imgfs.errors import Malformed

_log = logging.getLogger("imgfs.content.ingest")


@dataclass(frozen=True, slots=True)
class Found:
    """An ingest that can be resumed at `offset`."""

    path: Path
    meta: Meta
    offset: int


def recover(disk: Disk, directory: Path, era: str) -> Iterator[Found]:
    """Mend every ingest below `directory`; one that cannot be is logged, set aside, and harms no other.

    Of one without bytes nothing is kept.
    """
    for path in unfinished(directory):
        try:
            sweep(path)
            found = read(path, era)
            yield _mend(disk, found, era)
        except (OSError, Malformed) as error:
            _give_up(disk, path, str(error))


def unfinished(directory: Path) -> list[Path]:
    """The directories of unfinished writes, without those that were set aside."""
    found = (entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
    return sorted(Path(entry.path) for entry in found if not entry.name.endswith(DAMAGED))


def _give_up(disk: Disk, path: Path, reason: str) -> None:
    """Bytes that nobody can name or resume are somebody's all the same, unless they are a stored blob's or none."""
    data, told = path / "data", {"path": str(path), "error": reason}
    try:
        if data.stat().st_size and data.stat().st_nlink == 1:
            disk.rename(path, aside_name(path))
            disk.fsync_directory(path.parent)
            _log.warning("ingest set aside", extra=told)
            return
    except OSError as error:
        _log.warning("ingest cannot be set aside", extra={**told, "error": str(error)})
        if not isinstance(error, FileNotFoundError):
            return
    _log.warning("ingest removed", extra=told)
    shutil.rmtree(path, ignore_errors=True)


def read(path: Path, era: str) -> Found:
    """What an ingest's directory says, without changing it. Raises OSError and Malformed."""
    meta = decode((path / "meta").read_bytes())
    status = (path / "data").stat()
    if status.st_nlink != 1:
        raise Malformed("ingest data: has a second name, so it may be a stored blob; the ingest cannot be resumed")
    offset = status.st_size if meta.era == era else min(meta.durable, status.st_size)
    return Found(path, msgspec.structs.replace(meta, updated=status.st_mtime_ns), offset)


def _mend(disk: Disk, found: Found, era: str) -> Found:
    if found.meta.era != era or found.offset < found.meta.durable:
        found = _cut(disk, found, era)
    final = found.path.with_name(ref_id(found.meta.ref))
    if final != found.path:
        found = _finish_rename(disk, found, final)
    return found


def _cut(disk: Disk, found: Found, era: str) -> Found:
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
    return Found(found.path, meta, found.offset)


def _finish_rename(disk: Disk, found: Found, final: Path) -> Found:
    """The record of a new ref is the renaming; the directory follows."""
    shutil.rmtree(final, ignore_errors=True)
    disk.rename(found.path, final)
    disk.fsync_directory(final.parent)
    return Found(final, found.meta, found.offset)
