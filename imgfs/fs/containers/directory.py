"""containers/: containers as directories. Reading shows the current state; rmdir deletes an ended container.

The state changes without the daemon, so the kernel caches nothing beyond the attributes of a listing, which save `ls
-l` one request per container.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import overload

import pyfuse3
import trio

from imgfs.aio.threads import run_disk
from imgfs.encoding import indented_json
from imgfs.errors import from_os
from imgfs.execution.containers import Containers, FoundContainer
from imgfs.execution.records.records import is_id
from imgfs.execution.state_documents import encode_states, state_document_of, summary_line
from imgfs.fs.caller import Caller
from imgfs.fs.containers.deleting import delete
from imgfs.fs.containers.output import OUTPUT, find_output
from imgfs.fs.files import WRITING, BytesHandle, ReportFile
from imgfs.fs.node import SOON, Directory, Handle, Link, Listing, Node, control_number, missing
from imgfs.fs.subsystems import ContainerSubsystems
from imgfs.fs.xattrs import as_error
from imgfs.rootfs.places import rootfs_of
from imgfs.snapshots.ids import active_id

OPEN, CLOSED = 0o444, 0o400
"""Mode of files that may contain secrets, such as the configuration and the output: readable by the owner only."""
_ROOTFS = b"rootfs"
_MANY = {b"_all": False, b"_running": True}


class ContainersDirectory(Directory):
    """Lists the IDs. A lookup costs the same for any number of containers.

    Unlisted: `_all` and `_running` contain the states of many containers. No ID begins with an underscore.
    """

    __slots__ = ("_subsystems",)

    def __init__(self, subsystems: ContainerSubsystems) -> None:
        super().__init__("containers", subsystems.shown)
        self._subsystems = subsystems

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name in _MANY:
            return ReportFile(f"containers/{name.decode()}", self._shown, partial(self._states, is_running=_MANY[name]))
        id = os.fsdecode(name)
        if not is_id(id):
            raise missing(name)
        container = ContainerDirectory(self._subsystems, id)
        await container.reached(caller)
        return container

    async def entries(self, caller: Caller) -> Listing:
        return _Ids(self._subsystems, await self._subsystems.containers.ids())

    async def _states(self, *, is_running: bool) -> bytes:
        look = partial(encode_states, self._subsystems.containers, running=is_running)
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        id = os.fsdecode(name)
        if not is_id(id):
            raise missing(name)
        await delete(self._subsystems, id, caller)


class _Ids(Sequence[tuple[bytes, Node]]):
    """A listing that makes its nodes on demand: 100,000 nodes at once would block the event loop."""

    def __init__(self, subsystems: ContainerSubsystems, ids: list[str]) -> None:
        self._subsystems = subsystems
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> tuple[bytes, Node]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[tuple[bytes, Node]]: ...
    def __getitem__(self, at: int | slice) -> tuple[bytes, Node] | Sequence[tuple[bytes, Node]]:
        if isinstance(at, slice):
            return _Ids(self._subsystems, self._ids[at])
        id = self._ids[at]
        return id.encode(), ContainerDirectory(self._subsystems, id)


class ContainerDirectory(Directory):
    """`containers/<id>`. Its mtime is the time of the last status change."""

    __slots__ = ("_id", "_subsystems")

    def __init__(self, subsystems: ContainerSubsystems, id: str) -> None:
        super().__init__(f"containers/{id}", subsystems.shown)
        self._subsystems = subsystems
        self._id = id

    async def reached(self, caller: Caller) -> None:
        """Read the record in a thread, so that `attributes` need not wait for the disk. Raises NotFound."""
        await run_disk(self._containers.changed, self._id)

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._shown.entry(self.number, stat.S_IFDIR | self.mode, time=self._containers.changed(self._id))

    async def listed(self) -> pyfuse3.EntryAttributes:
        entry = await self.attributes()
        entry.entry_timeout = entry.attr_timeout = SOON
        return entry

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        if name == _ROOTFS:
            return await self._rootfs()
        if name in _RENDERED:
            return self._rendered(name)
        output = await run_disk(find_output, self._shown, self._containers.records.find(self._id), name)
        if output is None:
            raise missing(name)
        return output

    async def entries(self, caller: Caller) -> Listing:
        record = self._containers.records.find(self._id)
        outputs = [(name, await run_disk(find_output, self._shown, record, name)) for name in OUTPUT]
        return [
            *((name, self._rendered(name)) for name in _RENDERED),
            *((name, output) for name, output in outputs if output is not None),
            (_ROOTFS, await self._rootfs()),
        ]

    async def xattrs(self) -> dict[bytes, bytes]:
        return as_error(self._subsystems.failures.get(f"containers/{self._id}"))

    @property
    def _containers(self) -> Containers:
        return self._subsystems.containers

    def _rendered(self, name: bytes) -> Node:
        mode, render = _RENDERED[name]
        return StatusFile(self._subsystems, self._id, name.decode(), mode, render)

    async def _rootfs(self) -> Node:
        found = await run_disk(self._containers.read, self._id)
        target = f"../../{rootfs_of(active_id(found.container.snapshot))}"
        return Link(f"containers/{self._id}/rootfs", self._shown, target)


class StatusFile(Node):
    """A document about a container, rendered for each stat and open."""

    __slots__ = ("_id", "_mode", "_render", "_subsystems")

    direct_io = True

    def __init__(
        self, subsystems: ContainerSubsystems, id: str, name: str, mode: int, render: Callable[[FoundContainer], bytes]
    ) -> None:
        super().__init__(control_number(f"containers/{id}/{name}"))
        self._subsystems = subsystems
        self._id = id
        self._mode = mode
        self._render = render

    async def attributes(self) -> pyfuse3.EntryAttributes:
        data, changed = await self._rendered()
        mode = stat.S_IFREG | self._mode
        return self._subsystems.shown.entry(self.number, mode, size=len(data), time=changed, disk=0)

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & WRITING:
            raise self.refusal()
        data, _ = await self._rendered()
        return BytesHandle(data)

    async def _rendered(self) -> tuple[bytes, int]:
        return await run_disk(self._look)

    def _look(self) -> tuple[bytes, int]:
        found = self._subsystems.containers.read(self._id)
        return self._render(found), found.changed


def _state_json(found: FoundContainer) -> bytes:
    return indented_json(state_document_of(found))


def _status(found: FoundContainer) -> bytes:
    return f"{summary_line(found.container, found.status)}\n".encode(errors="backslashreplace")


def _pid(found: FoundContainer) -> bytes:
    """The PID, or nothing if there is no process."""
    return b"" if found.status.pid is None else f"{found.status.pid}\n".encode()


def _config(found: FoundContainer) -> bytes:
    try:
        return found.record.config.read_bytes()
    except OSError as error:
        raise from_os(error, f"config of container {found.record.id}") from None


_RENDERED: dict[bytes, tuple[int, Callable[[FoundContainer], bytes]]] = {
    b"state.json": (OPEN, _state_json),
    b"status": (OPEN, _status),
    b"pid": (OPEN, _pid),
    b"config.json": (CLOSED, _config),
}
