"""Names that go ahead of their bytes: `<hex>.*.unproven`, beside the name that a blob gets once its bytes are durable.

A new file and its name reach the disk together, in one commit of the journal, where bytes, then name would be two. A
power cut may leave such a name with any bytes, or, as the last renaming is not waited for, with all of a blob that was
acknowledged. So the next start looks at the bytes; until then nobody takes it for a blob.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from imgfs.content.running_digest import RunningDigest
from imgfs.disk.calls import Disk
from imgfs.oci.digest import is_digest

_log = logging.getLogger("imgfs.content")

AHEAD_BYTES = 1 << 20
"""What is larger is synced first: its bytes are behind its writer by then, and the start would have much to read."""

_NAME = re.compile(r"([0-9a-f]+)\.[0-9a-f]{16}\.unproven")


def unproven_path(final: Path) -> Path:
    """A name that goes ahead of `final`, which no other writer of the same blob has."""
    return final.with_name(f"{final.name}.{os.urandom(8).hex()}.unproven")


def final_path(path: Path) -> Path | None:
    """The name that a blob gets instead of such a name; None if `path` is none."""
    found = _NAME.fullmatch(path.name)
    if found and is_digest(f"{path.parent.parent.name}:{found[1]}") and path.parent.name == found[1][:2]:
        return path.with_name(found[1])
    return None


def prove(disk: Disk, path: Path, final: Path) -> Path | None:
    """Give the file its final name, which is returned, if the disk has the blob's bytes; else remove it.

    For the start; syncing the directory is left to the caller. What the disk refuses is logged and left for another.
    """
    try:
        if not final.exists() and _has_digest(disk, path, f"{path.parent.parent.name}:{final.name}"):
            disk.rename(path, final)
            return final
        disk.unlink(path)
    except OSError as error:
        _log.warning("unproven blob left alone", extra={"path": str(path), "error": str(error)})
    return None


def _has_digest(disk: Disk, path: Path, digest: str) -> bool:
    """By what the disk has: a sync that failed while its process was killed left its bytes in memory alone."""
    file = disk.open(path)
    try:
        disk.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        running, end = RunningDigest.start(digest.partition(":")[0]), os.fstat(file).st_size
        while running.position < end:
            running = running.read_on(file, end)
        disk.seal(file)
        return running.digest == digest
    finally:
        os.close(file)
