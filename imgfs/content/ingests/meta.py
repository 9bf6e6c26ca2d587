"""What an unfinished write remembers about itself: `ingest/<id>/meta`, and the era that its last fsync belongs to.

Owns the file's format and whether bytes beyond the last recorded fsync can be believed. Written anew as a whole: a
reader finds the old file or the new one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec
import trio

from imgfs.aio.threads import run_disk
from imgfs.disk.calls import Disk, write_all
from imgfs.disk.durable import write_file
from imgfs.encoding import indented_json
from imgfs.errors import ImgfsError, Malformed, from_os
from imgfs.oci.digest import Digest

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_READABLE = "/:@+,=~ "


class IngestMeta(msgspec.Struct, frozen=True):
    """An ingest's record. Times are ns since the epoch; the first `durable` bytes were synced in `era` or before."""

    ref: str
    started: int
    updated: int
    era: str
    durable: int = 0
    total: int | None = None
    expected: Digest | None = None

    @property
    def subject(self) -> str:
        """What messages call the ingest."""
        return f"ingest {self.ref!r}"

    @property
    def algorithm(self) -> str:
        """By which the bytes are hashed as they come."""
        return self.expected.algorithm if self.expected else "sha256"


class _File(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Meta as JSON. The ref is percent-encoded, because it may hold bytes that are no text."""

    ref: str
    started: int
    updated: int
    era: str
    durable: int = 0
    total: int | None = None
    expected: str | None = None


def encode(meta: IngestMeta) -> bytes:
    """Meta as the bytes of its file."""
    ref = quote_from_bytes(os.fsencode(meta.ref), _READABLE)
    expected = None if meta.expected is None else str(meta.expected)
    file = _File(ref, meta.started, meta.updated, meta.era, meta.durable, meta.total, expected)
    return indented_json(file)


def decode(data: bytes) -> IngestMeta:
    """Read a meta file; raises Malformed."""
    try:
        file = msgspec.json.decode(data, type=_File)
        expected = None if file.expected is None else Digest.parse(file.expected)
    except (msgspec.DecodeError, UnicodeDecodeError, ImgfsError) as error:
        raise Malformed(f"ingest meta: {error}; the ingest cannot be resumed") from None
    if file.durable < 0 or (file.total is not None and file.total < 0):
        raise Malformed("ingest meta: a size below 0; the ingest cannot be resumed")
    ref = os.fsdecode(unquote_to_bytes(file.ref))
    return IngestMeta(ref, file.started, file.updated, file.era, file.durable, file.total, expected)


def write_first(disk: Disk, path: Path, meta: IngestMeta) -> None:
    """Write the meta file of a new ingest, which may be lost in a power cut as a whole. Raises OSError."""
    file = disk.create(path)
    try:
        write_all(disk, file, encode(meta), 0)
    finally:
        os.close(file)


def write_again(disk: Disk, path: Path, meta: IngestMeta) -> None:
    """Replace a meta file, durably. Raises OSError."""
    write_file(path, encode(meta), disk)


def era_of(directory: Path) -> str:
    """What changes whenever bytes in `directory` that were not synced may have been lost: boot and mount.

    The mount ID is the kernel's short one, which a later mount may get again: whoever can ask statx for the unique one
    passes that era instead.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    mount = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "?")
    return f"{_BOOT_ID.read_text().strip()} {mount}"


class IngestRecord:
    """What the disk says of an ingest. Who changes it holds `lock` from looking at `meta` until it is written."""

    def __init__(self, disk: Disk, path: Path, meta: IngestMeta) -> None:
        self.path = path
        self.meta = meta
        self.lock = trio.Lock()
        self.is_rooted = meta.durable > 0
        """Whether the name of the ingest's directory is durable."""
        self._is_on_disk = True
        """Whether `meta` is what the disk has: not where writing it anew failed, for that may be there all the same."""
        self._disk = disk

    @property
    def is_durable(self) -> bool:
        """Whether the disk says what `meta` does, also after a power cut."""
        return self.is_rooted and self._is_on_disk

    async def write(self, meta: IngestMeta) -> None:
        """Replace it, durably, with the time of now. Raises NoSpace, StorageFailed; then either may be on disk."""
        meta = msgspec.structs.replace(meta, updated=time.time_ns())
        try:
            await run_disk(write_again, self._disk, self.path, meta)
            if not self.is_rooted:
                await run_disk(self._disk.fsync_directory, self.path.parent.parent)
                self.is_rooted = True
        except OSError as error:
            self._is_on_disk = False
            raise from_os(error, self.meta.subject) from None
        self.meta, self._is_on_disk = meta, True
