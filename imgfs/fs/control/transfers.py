""".imgfs/transfers/: a file for each blob in transfer, in either direction. It goes when the transfer ends."""

from __future__ import annotations

import os
import stat

import pyfuse3

from imgfs.encoding import indented_json
from imgfs.errors import NotFound
from imgfs.fs.caller import Caller
from imgfs.fs.files import DocumentFile
from imgfs.fs.node import Directory, Listing, Node, Shown, control_number, missing
from imgfs.transfer.transfer_status import TransferReporter
from imgfs.transfer.transfers import Transfer, Transfers


class TransfersDirectory(Directory):
    """Files are named by direction and digest.

    A number follows if the same bytes are transferred several times at once.
    """

    __slots__ = ("_running", "_transfers")

    def __init__(self, shown: Shown, transfers: Transfers, running: TransferReporter) -> None:
        super().__init__(".imgfs/transfers", shown)
        self._transfers = transfers
        self._running = running

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        found = self._transfers.named(os.fsdecode(name))
        if found is None:
            raise missing(name)
        return self._file(found)

    async def entries(self, caller: Caller) -> Listing:
        return [(one.name.encode(), self._file(one)) for one in self._transfers]

    def _file(self, transfer: Transfer) -> Node:
        return TransferFile(self._shown, self._transfers, self._running, transfer)


class TransferFile(DocumentFile):
    """One transfer as JSON (`transfer/` defines the keys). Its mtime is the start of the transfer."""

    __slots__ = ("_running", "_shown", "_transfer", "_transfers")

    def __init__(self, shown: Shown, transfers: Transfers, running: TransferReporter, transfer: Transfer) -> None:
        # Another transfer of the same name is another inode.
        super().__init__(control_number(f".imgfs/transfers/{transfer.name}/{transfer.serial}"))
        self._shown = shown
        self._transfers = transfers
        self._running = running
        self._transfer = transfer

    async def attributes(self) -> pyfuse3.EntryAttributes:
        began = round(self._transfer.started * 1e9)
        mode = stat.S_IFREG | 0o444
        return self._shown.entry(self.number, mode, size=len(self._render()), time=began, disk=0)

    async def content(self, caller: Caller) -> bytes:
        return self._render()

    def _render(self) -> bytes:
        if self._transfers.named(self._transfer.name) is not self._transfer:
            raise NotFound(f"transfer {self._transfer.name}: has ended")
        return indented_json(self._running.status(self._transfer))
