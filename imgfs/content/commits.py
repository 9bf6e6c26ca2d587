"""Group commit: files that get their final names at the same time share the syncs of the disk.

This module owns the durable order: bytes, fsync(file), name, fsync(directory), return. For small files the order is:
provisional name (unproven.py), fsync(file), fsync(directory), final name, return. A journaling filesystem does that in
one commit. While one batch is being written, the next one collects. The files of a batch are synced in parallel, which
the journal turns into a few commits, and each directory is synced once. syncfs(2) would be faster, but it writes the
data of other programs too, and its error does not say which file failed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio

from imgfs.aio.threads import run_disk, run_sync
from imgfs.content.unproven import unproven_path
from imgfs.disk.calls import Disk

T = TypeVar("T")

SIDE_BY_SIDE = 16
"""Threads a batch: enough for the journal to combine their commits and for the disk to combine its flushes."""


@dataclass(slots=True, eq=False)
class Naming:
    """A file that moves from the path `old` to its final name. It is read-only under the final name.

    `file` is its open descriptor, or None. Unless `are_durable` is set, its bytes are synced before it gets its name.
    With `goes_ahead`, it first gets a provisional name, and both are synced together: this is for bytes that nothing
    has promised to keep, because a power cut may lose them. With `keep`, the bytes are durable already and the file
    keeps its old name too (a hard link). `clear` removes what is left at the old place; it is called in a thread once
    the name is durable, and must not raise.

    After a failure, `is_lost` says that the sync of the bytes failed, so it is unknown which of them are on disk. After
    any other failure the bytes are unchanged and the caller may retry.
    """

    old: Path
    final: Path
    file: int | None = None
    are_durable: bool = False
    goes_ahead: bool = False
    keep: bool = False
    clear: Callable[[], object] | None = None
    is_synced: bool = field(default=False, init=False)
    is_lost: bool = field(default=False, init=False)
    is_named: bool = field(default=False, init=False)
    is_done: bool = field(default=False, init=False)
    error: OSError | None = field(default=None, init=False)
    named: Path = field(init=False)
    """The name whose directory is synced."""

    def __post_init__(self) -> None:
        self.named = unproven_path(self.final) if self.goes_ahead else self.final


class GroupCommit:
    """Publishes files durably, in batches. `shards` are the directories whose own names are durable already."""

    def __init__(self, disk: Disk, shards: set[Path]) -> None:
        self._disk = disk
        self._shards = shards
        self._waiting: list[Naming] = []
        self._turn = trio.Lock()

    async def publish(self, naming: Naming) -> None:
        """Make the bytes durable, then the name. Raises OSError; the file then has its old name.

        Cancellation has no effect once the call has begun.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._waiting.append(naming)
        with trio.CancelScope(shield=True):
            async with self._turn:
                if not naming.is_done:
                    batch, self._waiting = self._waiting, []
                    await self._write(batch)
        if naming.error is not None:
            raise naming.error

    async def _write(self, batch: list[Naming]) -> None:
        for naming in batch:
            naming.is_done = True
            naming.error = OSError(errno.EIO, os.strerror(errno.EIO))
        if len(batch) == 1:
            await run_disk(self._write_alone, batch[0])
            return
        await self._sync_all([naming for naming in batch if not naming.goes_ahead])
        named = await run_disk(self._name, batch)
        await self._sync_all([naming for naming in named if naming.goes_ahead])
        shards: dict[Path, list[Naming]] = {}
        for naming in named:
            if naming.is_synced:
                shards.setdefault(naming.final.parent, []).append(naming)
        await _side_by_side(self._sync_names, list(shards.items()))

    def _write_alone(self, naming: Naming) -> None:
        """Write a batch of one in a single trip to a thread: more trips would take longer than the disk."""
        if not naming.goes_ahead:
            self._attempt(naming, self._seal_and_sync)
        if self._name([naming]) and naming.goes_ahead:
            self._attempt(naming, self._seal_and_sync)
        if naming.is_named and naming.is_synced:
            self._sync_names((naming.final.parent, [naming]))

    async def _sync_all(self, batch: list[Naming]) -> None:
        """Sync the files of a batch.

        All of them reach the next commit of the journal, because writing all starts before the first wait.
        """
        if not batch:
            return
        sealed = await run_disk(lambda: [naming for naming in batch if self._attempt(naming, self._seal)])
        await _side_by_side(lambda naming: self._attempt(naming, self._sync), sealed)

    def _attempt(self, naming: Naming, work: Callable[[Naming], None]) -> bool:
        """Call `work`; return False and record the error if the disk refused."""
        try:
            work(naming)
        except OSError as error:
            naming.error = error
            if naming.is_named:
                self._take_back(naming)
            return False
        return True

    def _seal(self, naming: Naming) -> None:
        if not naming.keep:
            with self._opened(naming, self._disk.open) as file:
                self._disk.seal(file)
                if naming.goes_ahead:  # for a large file, this call would drop cached pages that are on disk already
                    self._disk.begin_to_write(file)

    def _sync(self, naming: Naming) -> None:
        if not naming.keep and not naming.are_durable:
            with self._opened(naming, self._disk.open_to_sync) as file:
                self._fsync(naming, file)
        naming.is_synced = True

    def _seal_and_sync(self, naming: Naming) -> None:
        if not naming.keep:
            with self._opened(naming, self._disk.open) as file:
                self._disk.seal(file)
                if not naming.are_durable:
                    self._fsync(naming, file)
        naming.is_synced = True

    def _fsync(self, naming: Naming, file: int) -> None:
        naming.is_lost = True  # until the sync succeeds
        self._disk.fsync(file)
        naming.is_lost = False

    @contextmanager
    def _opened(self, naming: Naming, opening: Callable[[Path], int]) -> Generator[int]:
        if naming.file is not None:
            yield naming.file
            return
        file = opening(naming.named if naming.is_named else naming.old)
        try:
            yield file
        finally:
            os.close(file)

    def _name(self, batch: list[Naming]) -> list[Naming]:
        """Rename or link those files of a batch that are synced or go ahead; return the ones that succeeded."""
        batch = [naming for naming in batch if naming.is_synced or naming.goes_ahead]
        try:
            self._make_shards({naming.final.parent for naming in batch} - self._shards)
        except OSError as error:
            for naming in batch:
                naming.error = error
            return []
        for naming in batch:
            try:
                self._rename(naming)
                naming.is_named = True
            except OSError as error:
                naming.error = error
        return [naming for naming in batch if naming.is_named]

    def _make_shards(self, missing: set[Path]) -> None:
        for shard in sorted(missing):
            with suppress(FileExistsError):
                self._disk.mkdir(shard)
        for parent in sorted({shard.parent for shard in missing}):
            self._disk.fsync_directory(parent)
        self._shards |= missing

    def _rename(self, naming: Naming) -> None:
        if naming.keep:
            with suppress(FileExistsError):
                self._disk.link(naming.old, naming.final)
        else:
            self._disk.rename(naming.old, naming.named)

    def _sync_names(self, shard: tuple[Path, list[Naming]]) -> None:
        path, batch = shard
        try:
            self._disk.fsync_directory(path)
        except OSError as error:
            for naming in batch:
                naming.error = error
                self._take_back(naming)
            return
        for naming in batch:
            self._finish(naming)

    def _finish(self, naming: Naming) -> None:
        try:
            if naming.goes_ahead:
                self._disk.rename(naming.named, naming.final)
        except OSError as error:
            naming.error = error
            self._take_back(naming)
            return
        naming.error = None
        if naming.clear is not None:
            naming.clear()

    def _take_back(self, naming: Naming) -> None:
        """Give a file that was not acknowledged its old name again, so that the caller can retry or remove it."""
        if not naming.keep:
            with suppress(OSError):
                self._disk.rename(naming.named, naming.old)


async def _side_by_side(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Call `work` for every item, in a few threads."""

    def share(first: int) -> None:
        for item in items[first::SIDE_BY_SIDE]:
            work(item)

    async with trio.open_nursery() as nursery:
        for first in range(min(SIDE_BY_SIDE, len(items))):
            nursery.start_soon(run_sync, share, first)
