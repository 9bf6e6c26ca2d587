"""Disks for tests: one that fails on request, and one that logs its operations, so that crashes can be replayed."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.disk.calls import HostDisk


class FaultyDisk(HostDisk):
    """Counts calls; `errors` makes calls fail, `room` is the number of bytes that may still be written."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, int] = {}
        self.room: int | None = None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))

    def create(self, path: Path) -> int:
        self._called("create")
        return super().create(path)

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        self._called("write")
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = memoryview(data)[: self.room]
            self.room -= len(data)
        return super().write(file, data, offset)

    def truncate(self, file: int, size: int) -> None:
        self._called("truncate")
        super().truncate(file, size)

    def seal(self, file: int) -> None:
        self._called("seal")
        super().seal(file)

    def begin_to_write(self, file: int) -> None:
        self._called("begin_to_write")
        super().begin_to_write(file)

    def fsync(self, file: int) -> None:
        self._called("fsync")
        super().fsync(file)

    def rename(self, old: Path, new: Path) -> None:
        self._called("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._called("unlink")
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self._called("mkdir")
        super().mkdir(path)

    def fsync_directory(self, path: Path) -> None:
        self._called("fsync_directory")
        super().fsync_directory(path)


@dataclass(frozen=True)
class Op:
    """One change, by inode numbers: of the file for bytes, of the directory for names."""

    kind: str
    inode: int
    name: str = ""
    child: int = 0
    to: tuple[int, str] = (0, "")
    offset: int = 0
    data: bytes = b""

    def is_synced_by(self, later: Op) -> bool:
        """Whether `later` makes this durable. A rename is atomic and belongs to its target's directory."""
        if self.kind in ("write", "truncate"):
            return later.kind == "fsync" and later.inode == self.inode
        where = self.to[0] if self.kind == "rename" else self.inode
        return later.kind == "fsync_directory" and later.inode == where

    @property
    def is_sync(self) -> bool:
        """Whether it changes nothing."""
        return self.kind.startswith("fsync")


class Recorder(HostDisk):
    """Performs everything on the real disk below `root`, and logs the operations in the order of their effect."""

    def __init__(self, root: Path) -> None:
        self.root = root.stat().st_ino
        self.log: list[Op] = []
        self._lock = threading.Lock()

    def create(self, path: Path) -> int:
        with self._lock:
            file = super().create(path)
            self._log("create", path, child=os.fstat(file).st_ino)
            return file

    def mkdir(self, path: Path) -> None:
        with self._lock:
            super().mkdir(path)
            self._log("mkdir", path, child=path.stat().st_ino)

    def link(self, old: Path, new: Path) -> None:
        with self._lock:
            super().link(old, new)
            self._log("link", new, child=new.stat().st_ino)

    def rename(self, old: Path, new: Path) -> None:
        with self._lock:
            child = old.stat().st_ino
            super().rename(old, new)
            self._log("rename", old, child=child, to=(new.parent.stat().st_ino, new.name))

    def unlink(self, path: Path) -> None:
        with self._lock:
            super().unlink(path)
            self._log("unlink", path)

    def rmdir(self, path: Path) -> None:
        with self._lock:
            super().rmdir(path)
            self._log("rmdir", path)

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        with self._lock:
            taken = super().write(file, data, offset)
            self.log.append(Op("write", os.fstat(file).st_ino, offset=offset, data=bytes(data[:taken])))
            return taken

    def truncate(self, file: int, size: int) -> None:
        with self._lock:
            super().truncate(file, size)
            self.log.append(Op("truncate", os.fstat(file).st_ino, offset=size))

    def fsync(self, file: int) -> None:
        with self._lock:
            self.log.append(Op("fsync", os.fstat(file).st_ino))

    def fsync_directory(self, path: Path) -> None:
        with self._lock:
            self.log.append(Op("fsync_directory", path.stat().st_ino))

    def _log(self, kind: str, path: Path, child: int = 0, to: tuple[int, str] = (0, "")) -> None:
        self.log.append(Op(kind, path.parent.stat().st_ino, path.name, child, to))


@dataclass
class _Node:
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, _Node] | None = None


class Crash:
    """The state of a disk after a crash: some operations of a log, applied in order."""

    def __init__(self, root: int, ops: list[Op]) -> None:
        self._root = _Node(names={})
        self._nodes = {root: self._root}
        for op in ops:
            self._do(op)

    def lay_out(self, at: Path) -> None:
        """Create this state in the new directory `at`."""
        _lay_out(self._root, at)

    def _do(self, op: Op) -> None:
        node = self._nodes.setdefault(op.inode, _Node(names={}))
        if op.kind == "write":
            end = op.offset + len(op.data)
            node.data.extend(bytes(max(0, end - len(node.data))))
            node.data[op.offset : end] = op.data
        elif op.kind == "truncate":
            node.data[op.offset :] = bytes(max(0, op.offset - len(node.data)))
        elif node.names is not None:
            self._do_name(op, node.names)

    def _do_name(self, op: Op, names: dict[str, _Node]) -> None:
        if op.kind in ("create", "mkdir"):
            self._nodes[op.child] = _Node(names={} if op.kind == "mkdir" else None)
            if op.name:
                names[op.name] = self._nodes[op.child]
        elif op.kind == "link":
            names[op.name] = self._nodes[op.child]
        elif op.kind in ("unlink", "rmdir"):
            names.pop(op.name, None)
        elif op.kind == "rename":
            moved = self._nodes[op.child]
            if names.get(op.name) is moved:
                del names[op.name]
            target = self._nodes[op.to[0]].names
            assert target is not None
            target[op.to[1]] = moved


def _lay_out(node: _Node, at: Path) -> None:
    if node.names is None:
        at.write_bytes(node.data)
        return
    at.mkdir()
    for name, child in node.names.items():
        _lay_out(child, at / name)


def _fates(op: Op) -> list[Op | None]:
    """The possible fates of an operation that no sync covers."""
    if op.kind == "write":
        half = Op("write", op.inode, offset=op.offset, data=op.data[: len(op.data) // 2])
        hole = Op("write", op.inode, offset=op.offset, data=bytes(len(op.data)))
        return [op, None, half, hole]
    if op.kind in ("create", "mkdir"):
        return [op, Op(op.kind, op.inode, child=op.child)]
    return [op, None]


def power_cuts(log: list[Op], end: int, last: int = 3) -> Iterator[list[Op]]:
    """Ways in which the first `end` operations may survive: of those that no sync covers, any single one or all are
    lost, and of the `last` ones any may be lost or torn."""
    prefix = log[:end]
    unsynced = [
        at
        for at, op in enumerate(prefix)
        if not op.is_sync and not any(op.is_synced_by(later) for later in prefix[at + 1 :])
    ]
    choices = [{at: _fates(prefix[at])[1]} for at in unsynced]
    choices.append({at: _fates(prefix[at])[1] for at in unsynced})
    for fates in itertools.product(*(_fates(prefix[at]) for at in unsynced[-last:])):
        choices.append(dict(zip(unsynced[-last:], fates, strict=True)))
    for fate in choices:
        yield [kept for at, op in enumerate(prefix) if (kept := fate.get(at, op)) is not None]
