""".imgfs/deleted/containers/: how each deleted container ended, until garbage collection. rm removes a record."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.aio.threads import run_disk
from imgfs.execution.records.records import DeletedContainers, is_id
from imgfs.fs.caller import Caller
from imgfs.fs.files import DocumentFile
from imgfs.fs.node import Directory, Listing, Node, Shown, control_number, missing


class DeletedDirectory(Directory):
    """The directory of records. Its mtime has no meaning; the mtime of a record is the time of the deletion."""

    __slots__ = ("_deleted",)

    def __init__(self, shown: Shown, deleted: DeletedContainers) -> None:
        super().__init__(".imgfs/deleted/containers", shown)
        self._deleted = deleted

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        id = os.fsdecode(name)
        if not is_id(id):
            raise missing(name)
        await run_disk(self._deleted.stat, id)
        return DeletedFile(self._shown, self._deleted, id)

    async def entries(self, caller: Caller) -> Listing:
        ids = sorted(await run_disk(self._deleted.ids))
        return [(id.encode(), DeletedFile(self._shown, self._deleted, id)) for id in ids]

    async def unlink(self, name: bytes, caller: Caller) -> None:
        id = os.fsdecode(name)
        if not is_id(id):
            raise missing(name)
        await run_disk(self._deleted.remove, id)


class DeletedFile(DocumentFile):
    """One record, as JSON."""

    __slots__ = ("_deleted", "_id", "_shown")

    def __init__(self, shown: Shown, deleted: DeletedContainers, id: str) -> None:
        super().__init__(control_number(f".imgfs/deleted/containers/{id}"))
        self._shown = shown
        self._deleted = deleted
        self._id = id

    async def attributes(self) -> pyfuse3.EntryAttributes:
        status = self._deleted.stat(self._id)
        return self._shown.entry(self.number, stat.S_IFREG | 0o444, size=status.st_size, time=status.st_mtime_ns)

    async def content(self, caller: Caller) -> bytes:
        return await run_disk(self._deleted.read, self._id)
