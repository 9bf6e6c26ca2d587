"""Files whose content is made when they are opened, which may take a while or a request."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable

import pyfuse3

from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING, BytesHandle
from imgfs.fs.node import Handle, Node, control_number
from imgfs.fs.subsystems import Subsystems


class ReportFile(Node):
    """A report that is made when it is opened; its size is not known before."""

    __slots__ = ("_render", "_subsystems")

    direct_io = True

    def __init__(self, subsystems: Subsystems, key: str, render: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__(control_number(key))
        self._subsystems = subsystems
        self._render = render

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o444)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        return BytesHandle(await caller.wait(self._render))
