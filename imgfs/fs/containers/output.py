"""The output of a container as a file that grows while it is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pyfuse3

from imgfs.aio.threads import run_disk
from imgfs.errors import NotFound, from_os
from imgfs.execution.records.record import ContainerRecord
from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING, BytesHandle
from imgfs.fs.node import Handle, Node, Shown, control_number

LOG, OLD_LOG = b"log", b"log.1"
OUTPUT = (LOG, OLD_LOG)
"""The current log, and the full one that the supervisor renamed."""


class OutputFile(Node):
    """One log file. It keeps its inode when it is renamed, so that `tail -F` follows.

    `file` is the inode number on disk, 0 before the first byte. Mode 0400, because output may contain secrets.
    """

    __slots__ = ("_file", "_record", "_shown")

    direct_io = True

    def __init__(self, shown: Shown, record: ContainerRecord, file: int) -> None:
        super().__init__(control_number(f"containers/{record.id}/log/{file}"))
        self._shown = shown
        self._record = record
        self._file = file

    async def reached(self, caller: Caller) -> None:
        """Find the file in a thread, so that `attributes` need not wait for the disk."""
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
        """Return the current path of the file, or None before the first byte.

        Raises NotFound if it was removed, StorageFailed.
        """
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
    """Return the file of that name in a container's directory. `log` exists before the first byte. Blocks."""
    if name not in OUTPUT:
        return None
    status = _stat(record.path / os.fsdecode(name), _subject(record))
    if status is None and name != LOG:
        return None
    return OutputFile(shown, record, status.st_ino if status is not None else 0)


class OutputHandle:
    """An open log. Each read returns the bytes written so far. It stays readable after its name is removed."""

    def __init__(self, file: int, subject: str) -> None:
        """Take ownership of the descriptor `file`. `subject` names the file in errors."""
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
