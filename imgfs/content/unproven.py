"""Provisional blob names, `<hex>.*.unproven`, beside the final name.

Small blobs get one before their bytes are durable.

A new file and its name reach the disk in one commit of the journal; "bytes first, then the name" needs two. After a
power cut, the file of a provisional name may hold any bytes. It may also be a whole, acknowledged blob, because the
commit does not wait for the last rename. So the next start hashes the file; until then it does not count as a blob.
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
"""The largest blob that gets a provisional name.

The bytes of larger ones are mostly synced when the commit begins, and the next start would have much to hash.
"""

_NAME = re.compile(r"([0-9a-f]+)\.[0-9a-f]{16}\.unproven")


def unproven_path(final: Path) -> Path:
    """Return a provisional name for `final` that no other writer of the same blob uses."""
    return final.with_name(f"{final.name}.{os.urandom(8).hex()}.unproven")


def final_path(path: Path) -> Path | None:
    """Return the final name that belongs to the provisional name `path`; None if `path` is not a provisional name."""
    found = _NAME.fullmatch(path.name)
    if found and is_digest(f"{path.parent.parent.name}:{found[1]}") and path.parent.name == found[1][:2]:
        return path.with_name(found[1])
    return None


def prove(disk: Disk, path: Path, final: Path) -> Path | None:
    """Rename the file to its final name and return that name if its bytes match; otherwise remove the file.

    For the start only. The caller syncs the directory. Disk errors are logged, and the file stays for the next start.
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
    """Check the digest of the bytes that are on disk, not in the page cache.

    If a sync failed while its process was killed, the page cache holds bytes that never reached the disk.
    """
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
