"""The record of an unfinished write: the file `ingest/<id>/meta`, and when it is written.

This module owns the file's format, and the era that decides whether bytes beyond the last recorded fsync can be
trusted. The file is always replaced as a whole, so a reader finds the old record or the new one.
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
    """An ingest's record. Times are ns since the epoch. The first `durable` bytes were synced, in `era` or before."""

    ref: str
    started: int
    updated: int
    era: str
    durable: int = 0
    total: int | None = None
    expected: Digest | None = None

    @property
    def subject(self) -> str:
        """The name of the ingest in messages."""
        return f"ingest {self.ref!r}"

    @property
    def algorithm(self) -> str:
        """The digest algorithm of the running digest."""
        return self.expected.algorithm if self.expected else "sha256"


class _File(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The record as JSON. The ref is percent-encoded, because it may contain bytes that are not UTF-8."""

    ref: str
    started: int
    updated: int
    era: str
    durable: int = 0
    total: int | None = None
    expected: str | None = None


def encode(meta: IngestMeta) -> bytes:
    """Return the bytes of the record's file."""
    ref = quote_from_bytes(os.fsencode(meta.ref), _READABLE)
    expected = None if meta.expected is None else str(meta.expected)
    file = _File(ref, meta.started, meta.updated, meta.era, meta.durable, meta.total, expected)
    return indented_json(file)


def decode(data: bytes) -> IngestMeta:
    """Parse the bytes of a record's file. Raises Malformed."""
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
    """Write the record of a new ingest, not durably: a power cut may lose the whole ingest. Raises OSError."""
    file = disk.create(path)
    try:
        write_all(disk, file, encode(meta), 0)
    finally:
        os.close(file)


def write_again(disk: Disk, path: Path, meta: IngestMeta) -> None:
    """Replace a record durably. Raises OSError."""
    write_file(path, encode(meta), disk)


def era_of(directory: Path) -> str:
    """Return the era of a directory: boot ID and mount ID. In a new era, bytes that were not synced may be lost.

    The mount ID is the kernel's short ID, which a later mount may reuse. A caller that can ask statx(2) for the unique
    mount ID passes its own era instead.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    mount = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "?")
    return f"{_BOOT_ID.read_text().strip()} {mount}"


class IngestRecord:
    """The record on disk of one ingest.

    A caller that changes it holds `lock` from reading `meta` until the write is done.
    """

    def __init__(self, disk: Disk, path: Path, meta: IngestMeta) -> None:
        self.path = path
        self.meta = meta
        self.lock = trio.Lock()
        self.is_name_durable = meta.durable > 0
        """Whether the name of the ingest's directory is durable."""
        self._is_on_disk = True
        """Whether the disk has `meta`. False after a failed write, because the disk may have either version then."""
        self._disk = disk

    @property
    def is_durable(self) -> bool:
        """Whether the disk has `meta`, also after a power cut."""
        return self.is_name_durable and self._is_on_disk

    async def write(self, meta: IngestMeta) -> None:
        """Replace the record durably, with the current time.

        Raises NoSpace, StorageFailed; the disk may have either version then.
        """
        meta = msgspec.structs.replace(meta, updated=time.time_ns())
        try:
            await run_disk(write_again, self._disk, self.path, meta)
            if not self.is_name_durable:
                await run_disk(self._disk.fsync_directory, self.path.parent.parent)
                self.is_name_durable = True
        except OSError as error:
            self._is_on_disk = False
            raise from_os(error, self.meta.subject) from None
        self.meta, self._is_on_disk = meta, True
