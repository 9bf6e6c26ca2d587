""".imgfs/repair: repairs damage in the state directory while it is mounted.

It is a file of its own because the kernel keeps an inode locked during setxattr, and hashing takes long.
"""

from __future__ import annotations

import os
import stat

import msgspec
import pyfuse3

from imgfs.check.mender import Mender
from imgfs.errors import ImgfsError
from imgfs.fs.caller import Caller
from imgfs.fs.files import DocumentFile
from imgfs.fs.node import Shown, control_number
from imgfs.fs.xattrs import as_error

_DOOR = b"user.imgfs.repair"


class RepairFile(DocumentFile):
    """`user.imgfs.repair` with a path of the state directory checks that object and repairs it.

    Reading returns the repairs since the mount, one JSON object per line, the latest last.
    """

    __slots__ = ("_error", "_mender", "_shown")

    def __init__(self, shown: Shown, mender: Mender) -> None:
        super().__init__(control_number(".imgfs/repair"))
        self._mender = mender
        self._shown = shown
        self._error = ""

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._shown.entry(self.number, stat.S_IFREG | 0o600, size=len(self._report()), disk=0)

    async def content(self, caller: Caller) -> bytes:
        return self._report()

    async def xattrs(self) -> dict[bytes, bytes]:
        return as_error(self._error)

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        if name != _DOOR:
            raise self.refusal()
        try:
            await caller.wait(lambda: self._mender.mend(os.fsdecode(value)))
            self._error = ""
        except ImgfsError as error:
            self._error = error.message
            raise

    def _report(self) -> bytes:
        return b"".join(msgspec.json.encode(one) + b"\n" for one in self._mender.done)
