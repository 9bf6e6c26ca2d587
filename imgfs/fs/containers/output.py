"""What a container wrote, as a file that grows while it is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pyfuse3

from imgfs.aio.threads import run_disk
from imgfs.errors import NotFound, from_os
from imgfs.execution.records.records import ContainerRecord
from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING, BytesHandle
from imgfs.fs.node import Handle, Node, Shown, control_number

LOG, OLD_LOG = b"log", b"log.1"
OUTPUT = (LOG, OLD_LOG)
"""What a container writes now, and what the supervisor set aside when that was full."""


class OutputFile(Node):
    """One of both. It stays the same inode when it is set aside, so that `tail -F` sees the change.

    `file` is the inode's number on disk; 0 while nothing was written. Mode 0400: output may hold secrets.
    """

    __slots__ = ("_file", "_record", "_shown")

    direct_io = True

    def __init__(self, shown: Shown, record: ContainerRecord, file: int) -> None:
        super().__init__(control_number(f"containers/{record.id}/log/{file}"))
        self._shown = shown
        self._record = record
        self._file = file

    async def reached(self, caller: Caller) -> None:
        """Have the disk asked in a thread, so that `attributes` need not wait for it."""
        await run_disk(self._find)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        mode, found = stat.S_IFREG | 0o400, self._find()
        if found is None:
            return self._shown.entry(self.number, mode)
        _, status = found
        size, disk = status.st_size, status.st_blocks * 512
        return self._shown.entry(self.number, mode, size=size, time=status.st_mtime_ns, disk=disk)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        file = await run_disk(self._open)
        return BytesHandle(b"") if file is None else OutputHandle(file, _subject(self._record))

    def _find(self) -> tuple[Path, os.stat_result] | None:
        """Where the file is by now; None while there is none. Raises NotFound once it is gone, StorageFailed."""
        for name in OUTPUT:
            path = self._record.path / os.fsdecode(name)
            status = _stat(path, _subject(self._record))
            if status is not None and status.st_ino == self._file:
                return path, status
        if self._file:
            raise NotFound(f"{_subject(self._record)}: was removed")
        return None

    def _open(self) -> int | None:
        found = self._find()
        try:
            return os.open(found[0], os.O_RDONLY | os.O_CLOEXEC) if found else None
        except OSError as error:
            raise from_os(error, _subject(self._record)) from None


def find_output(shown: Shown, record: ContainerRecord, name: bytes) -> Node | None:
    """The file of that name in a container's directory; blocks. `log` is there before anything was written."""
    if name not in OUTPUT:
        return None
    status = _stat(record.path / os.fsdecode(name), _subject(record))
    if status is None and name != LOG:
        return None
    return OutputFile(shown, record, status.st_ino if status is not None else 0)


class OutputHandle:
    """An open log: each read gives what is there by then. It stays readable when its name goes."""

    def __init__(self, file: int, subject: str) -> None:
        """Take over the descriptor `file`; `subject` names it in errors."""
        self._file = file
        self._subject = subject

    async def read(self, offset: int, size: int) -> bytes:
        return await run_disk(self._read, offset, size)

    async def close(self) -> None:
        os.close(self._file)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._file, size, offset)
        except OSError as error:
            raise from_os(error, self._subject) from None


def _stat(path: Path, subject: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os(error, subject) from None


def _subject(record: ContainerRecord) -> str:
    return f"log of container {record.id}"
