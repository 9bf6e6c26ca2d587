""".imgfs/transfers/: a file for each blob that is on its way now, in or out. It goes when the transfer ends."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.encoding import indented_json
from imgfs.errors import NotFound
from imgfs.fs.caller import Caller
from imgfs.fs.files import Document
from imgfs.fs.node import Directory, Listing, Node, control_number, missing
from imgfs.fs.subsystems import Subsystems
from imgfs.transfer.progress import Transfer


class TransfersDirectory(Directory):
    """Called by direction and digest; a number follows where the same bytes go to or come from several places."""

    __slots__ = ("_subsystems",)

    def __init__(self, subsystems: Subsystems) -> None:
        super().__init__(".imgfs/transfers", subsystems.shown)
        self._subsystems = subsystems

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        found = self._subsystems.transfers.named(os.fsdecode(name))
        if found is None:
            raise missing(name)
        return TransferFile(self._subsystems, found)

    async def entries(self, caller: Caller) -> Listing:
        return [(one.name.encode(), TransferFile(self._subsystems, one)) for one in self._subsystems.transfers]


class TransferFile(Document):
    """One transfer as JSON (transfer/running.py says what the keys mean); its time is when it began."""

    __slots__ = ("_subsystems", "_transfer")

    def __init__(self, subsystems: Subsystems, transfer: Transfer) -> None:
        # Another transfer of the same name is another file.
        super().__init__(control_number(f".imgfs/transfers/{transfer.name}/{transfer.serial}"))
        self._subsystems = subsystems
        self._transfer = transfer

    async def attributes(self) -> pyfuse3.EntryAttributes:
        began = round(self._transfer.started * 1e9)
        mode = stat.S_IFREG | 0o444
        return self._subsystems.shown.entry(self.number, mode, size=len(self._render()), time=began, disk=0)

    async def content(self, caller: Caller) -> bytes:
        return self._render()

    def _render(self) -> bytes:
        if self._subsystems.transfers.named(self._transfer.name) is not self._transfer:
            raise NotFound(f"transfer {self._transfer.name}: has ended")
        return indented_json(self._subsystems.running.status(self._transfer))
