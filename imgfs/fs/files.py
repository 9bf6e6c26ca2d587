"""Files outside views: documents rendered on open, and files of the state directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable

import pyfuse3

from imgfs.aio.threads import read_at
from imgfs.fs.caller import Caller
from imgfs.fs.node import Handle, Node, Shown, control_number

WRITING = os.O_WRONLY | os.O_RDWR
"""The access flags of a writer; O_RDONLY is 0."""


class BytesHandle:
    """An open file whose bytes are fixed at open."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    async def read(self, offset: int, size: int) -> memoryview:
        return self._data[offset : offset + size]

    async def close(self) -> None:
        self._data.release()


class FileHandle:
    """An open file of the state directory. It stays readable after its name is removed."""

    def __init__(self, file: int, subject: str) -> None:
        """Take ownership of the descriptor `file`. `subject` names the file in errors."""
        self._file = file
        self._subject = subject
        self._size = os.fstat(file).st_size

    async def read(self, offset: int, size: int) -> bytes | bytearray:
        size = min(size, self._size - offset)
        return await read_at(self._file, size, offset, self._subject) if size > 0 else b""

    async def close(self) -> None:
        os.close(self._file)


class DocumentFile(Node):
    """A read-only file whose bytes are rendered for each open. Subclasses define its attributes."""

    __slots__ = ()

    direct_io = True

    async def content(self, caller: Caller) -> bytes:
        """Return the bytes for one open."""
        raise NotImplementedError

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        return BytesHandle(await self.content(caller))


class RenderedFile(DocumentFile):
    """A small document that is rendered for each stat and each open, such as `status.json`."""

    __slots__ = ("_render", "_shown")

    def __init__(self, key: str, shown: Shown, render: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__(control_number(key))
        self._shown = shown
        self._render = render

    async def attributes(self) -> pyfuse3.EntryAttributes:
        size = len(await self._render())
        return self._shown.entry(self.number, stat.S_IFREG | 0o444, size=size, disk=0)

    async def content(self, caller: Caller) -> bytes:
        return await self._render()


class ReportFile(DocumentFile):
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


def constant(data: bytes) -> Callable[[], Awaitable[bytes]]:
    """Return a renderer of a constant document."""
    return called(lambda: data)


def called(render: Callable[[], bytes]) -> Callable[[], Awaitable[bytes]]:
    """Return an asynchronous renderer from a synchronous one."""

    async def rendered() -> bytes:
        return render()

    return rendered
