"""Group commit: files that get their final names at the same time share the disk's syncs.

Owns the order bytes, fsync(file), name, fsync(directory), answer, for one file and for a thousand; and the other one,
for small files: a name that vouches for nothing (unproven.py), fsync(file), fsync(directory), the final name, answer,
which a journal does in one commit. While one batch is with the disk the next one gathers. The files of a batch are
synced side by side, which the journal turns into a few commits, and each directory once; a syncfs would be faster
still, but writes everybody's bytes and names no culprit.
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
"""Threads of a batch: enough for the journal to gather their commits, and the disk their flushes."""


@dataclass(slots=True, eq=False)
class Naming:
    """A file on its way from `old` to its final name, as which it is read-only.

    `file` is its descriptor, if it is open. Unless its bytes `are_durable`, they are synced first; or, if it
    `goes_ahead`, together with a name that is not final yet: for bytes of which nobody was promised any, as a power cut
    may take them away. With `keep` they are durable, and the file has both names afterwards. `clear` takes away what is
    left where it came from: it is called in a thread once the name is durable, and must not fail. `is_lost` tells,
    after a failure, that it was the sync of its bytes: then nobody knows which of them are on disk. Any other failure
    leaves them as they were, and can be tried again.
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
    """Names files durably, in batches. `shelves` are the directories whose own names are durable already."""

    def __init__(self, disk: Disk, shelves: set[Path]) -> None:
        self._disk = disk
        self._shelves = shelves
        self._waiting: list[Naming] = []
        self._turn = trio.Lock()

    async def publish(self, naming: Naming) -> None:
        """Make the bytes durable, then the name. Raises OSError; then the file has its old name.

        Once begun it is not cancelled.
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
        shelves: dict[Path, list[Naming]] = {}
        for naming in named:
            if naming.is_synced:
                shelves.setdefault(naming.final.parent, []).append(naming)
        await _side_by_side(self._sync_names, list(shelves.items()))

    def _write_alone(self, naming: Naming) -> None:
        """The same for a batch of one, in one trip to a thread: the trips would take longer than the disk."""
        if not naming.goes_ahead:
            self._tried(naming, self._seal_and_sync)
        if self._name([naming]) and naming.goes_ahead:
            self._tried(naming, self._seal_and_sync)
        if naming.is_named and naming.is_synced:
            self._sync_names((naming.final.parent, [naming]))

    async def _sync_all(self, batch: list[Naming]) -> None:
        """All of them are in the journal's next commit, as the disk is told of each before one is waited for."""
        if not batch:
            return
        sealed = await run_disk(lambda: [naming for naming in batch if self._tried(naming, self._seal)])
        await _side_by_side(lambda naming: self._tried(naming, self._sync), sealed)

    def _tried(self, naming: Naming, work: Callable[[Naming], None]) -> bool:
        """Whether the disk did not refuse."""
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
                if naming.goes_ahead:  # of what is large this would drop what is on disk already
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
        naming.is_lost = True  # until it is synced
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
        """Rename or link the files of a batch that are synced or go ahead; returns those that could be."""
        batch = [naming for naming in batch if naming.is_synced or naming.goes_ahead]
        try:
            self._make_shelves({naming.final.parent for naming in batch} - self._shelves)
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

    def _make_shelves(self, missing: set[Path]) -> None:
        for shelf in sorted(missing):
            with suppress(FileExistsError):
                self._disk.mkdir(shelf)
        for parent in sorted({shelf.parent for shelf in missing}):
            self._disk.fsync_directory(parent)
        self._shelves |= missing

    def _rename(self, naming: Naming) -> None:
        if naming.keep:
            with suppress(FileExistsError):
                self._disk.link(naming.old, naming.final)
        else:
            self._disk.rename(naming.old, naming.named)

    def _sync_names(self, shelf: tuple[Path, list[Naming]]) -> None:
        path, batch = shelf
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
        """What was not acknowledged gets its old name again, so that it can be tried again or removed."""
        if not naming.keep:
            with suppress(OSError):
                self._disk.rename(naming.named, naming.old)


async def _side_by_side(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Do `work` on every item, in a few threads."""

    def share(first: int) -> None:
        for item in items[first::SIDE_BY_SIDE]:
            work(item)

    async with trio.open_nursery() as nursery:
        for first in range(min(SIDE_BY_SIDE, len(items))):
            nursery.start_soon(run_sync, share, first)
