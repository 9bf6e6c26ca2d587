"""Files that are rendered when they are opened, which may take time or a request to a registry."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable

import pyfuse3

from imgfs.fs.caller import Caller
from imgfs.fs.files import Document
from imgfs.fs.node import Shown, control_number


class ReportFile(Document):
    """A report that is rendered on open. Its size is not known before."""

    __slots__ = ("_render", "_shown")

    def __init__(self, key: str, shown: Shown, render: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__(control_number(key))
        self._shown = shown
        self._render = render

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._shown.entry(self.number, stat.S_IFREG | 0o444)

    async def content(self, caller: Caller) -> bytes:
        return await caller.wait(self._render)
