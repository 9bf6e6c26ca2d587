"""All unfinished writes by ref, and the one holder of each.

This module also owns creating, renaming and removing their directories, so that a ref is in the table exactly as long
as its directory exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import trio

from imgfs.content.ingests.directories import RecoveredIngest, ingest_directories, make, move, read, recover, remove
from imgfs.content.ingests.ingest import Ingest
from imgfs.content.ingests.meta import IngestMeta, era_of
from imgfs.content.ingests.refs import parse_ref, ref_id
from imgfs.disk.calls import Disk
from imgfs.errors import Busy, Cancelled, ImgfsError, NotFound
from imgfs.oci.digest import Digest

RELEASE_SECONDS = 0.1
"""How long to wait for a writer that is closing: the kernel sends RELEASE after close(2) has returned."""


class IngestTable:
    """Ingests by ref. During a rename, an ingest is under both refs."""

    def __init__(self, disk: Disk, directory: Path, nursery: trio.Nursery) -> None:
        self._disk = disk
        self._directory = directory
        self._nursery = nursery
        self._era = ""
        self._ingests: dict[str, Ingest] = {}

    def load(self, era: str | None, *, read_only: bool) -> None:
        """Load what an earlier run left, once. `era` defaults to era_of(). Blocks."""
        if not self._directory.is_dir():
            return
        self._era = era or era_of(self._directory)
        for one in self._peek() if read_only else list(recover(self._disk, self._directory, self._era)):
            known = self.get(one.meta.ref)
            if known is not None and known.path != self.path(one.meta.ref):
                continue  # `known` replaced this one in a rename that the disk still refuses to complete
            ingest = self._ingests[one.meta.ref] = Ingest(self._disk, one.path, one.meta, one.offset, self._nursery)
            if one.meta.updated < one.meta.started:
                ingest.touched.now()  # the clock was set back meanwhile, so the age is unknown

    def _peek(self) -> Iterator[RecoveredIngest]:
        for path in ingest_directories(self._directory):
            with suppress(OSError, ImgfsError):
                yield read(path, self._era)

    def __iter__(self) -> Iterator[Ingest]:
        """Iterate over the ingests, each once. Concurrent changes are harmless."""
        return iter(list(dict.fromkeys(self._ingests.values())))

    def __contains__(self, ref: str) -> bool:
        return ref in self._ingests

    def get(self, ref: str) -> Ingest | None:
        """Return the ingest of a ref; None if there is none."""
        return self._ingests.get(ref)

    def find(self, ref: str) -> Ingest:
        """Return the ingest of a ref. Raises NotFound, Invalid."""
        ingest = self.get(parse_ref(ref))
        if ingest is None:
            raise NotFound(f"ingest {ref!r}: does not exist")
        return ingest

    def path(self, ref: str) -> Path:
        """Return the directory of an ingest with this ref."""
        return self._directory / ref_id(ref)

    async def place_directory(self, ingest: Ingest) -> None:
        """Complete a rename that the disk refused half-way: move the directory to the place of the ingest's current
        ref.

        Until then, the directory of the replaced ingest is at that place. The caller holds the lock. Raises NoSpace,
        StorageFailed.
        """
        final = self.path(ingest.meta.ref)
        if ingest.path == final:
            return
        with trio.CancelScope(shield=True):
            async with ingest.sync_paused():
                await ingest.on_disk(move, self._disk, ingest.path, final)
                ingest.set_path(final)
                await ingest.on_disk(self._disk.fsync_directory, self._directory)

    async def free_path(self, ref: str) -> None:
        """Move away the directory of another ingest that is still at the place of the ref `ref`.

        On return, without a checkpoint in between, the place is free. Raises as `place_directory`, and the reason if
        that ingest was ended.
        """
        while (occupant := self._occupant(ref)) is not None:
            async with occupant.turn():
                await self.place_directory(occupant)

    def _occupant(self, ref: str) -> Ingest | None:
        path = self.path(ref)
        if ref in self._ingests or not path.exists():
            return None
        return next((one for one in self if one.path == path), None)

    async def hold(self, ref: str, total: int | None, expected: Digest | None) -> tuple[Ingest, bool]:
        """Become the only holder of a ref, which is created if needed. The second result tells whether it was created.

        Raises Busy if another holder keeps it for 100 ms; NoSpace, StorageFailed.
        """
        with trio.move_on_after(RELEASE_SECONDS):
            while True:
                await self.free_path(ref)
                ingest = self.get(ref)
                if ingest is None:
                    return await self._start(ref, total, expected), True
                if not ingest.is_held and ingest.gone is None:
                    ingest.is_held, ingest.released = True, trio.Event()
                    return ingest, False
                await ingest.released.wait()
        raise Busy(f"ingest {ref!r}: has another writer; wait until it closes, or remove the ref")

    async def hold_known(self, ref: str) -> Ingest:
        """Become the only holder of an existing ref.

        Raises Busy as `hold`, and NotFound, also if the holder removed the ref.
        """
        ingest = self.find(ref)
        with trio.move_on_after(RELEASE_SECONDS):
            while ingest.is_held:
                await ingest.released.wait()
                ingest = self.find(ref)
            ingest.is_held, ingest.released = True, trio.Event()
            return ingest
        raise Busy(f"ingest {ref!r}: has an open writer; close it first")

    @contextmanager
    def held(self, ingest: Ingest) -> Generator[None]:
        """Hold an ingest without a holder in this context. Its time of last use does not change."""
        ingest.is_held, ingest.released = True, trio.Event()
        try:
            yield
        finally:
            ingest.is_held = False
            ingest.released.set()

    def release(self, ingest: Ingest) -> None:
        """Give up the hold on an ingest."""
        ingest.touched.now()
        ingest.is_held = False
        ingest.released.set()

    async def _start(self, ref: str, total: int | None, expected: Digest | None) -> Ingest:
        """Create an ingest, held by the caller.

        It is in the table before its directory exists, so no second one is created.
        """
        now = time.time_ns()
        meta = IngestMeta(ref, now, now, self._era, 0, total, expected)
        ingest = Ingest(self._disk, self.path(ref), meta, 0, self._nursery)
        ingest.is_held = True
        self._ingests[ref] = ingest
        with trio.CancelScope(shield=True):
            async with ingest.lock:
                try:
                    await ingest.on_disk(make, self._disk, ingest.path, meta)
                except ImgfsError as error:
                    ingest.end(error)
                    self._ingests.pop(ref)
                    self.release(ingest)
                    raise
        return ingest

    async def remove(self, ingest: Ingest, reason: ImgfsError, how: Callable[[Disk, Path], None] = remove) -> None:
        """End an ingest whose lock the caller holds. The ref is free once the directory is gone.

        If the disk refuses, the ref keeps its bytes for another attempt; an open writer gets `reason` in any case.
        """
        ingest.end(reason)
        with trio.CancelScope(shield=True):
            try:
                await self.place_directory(ingest)
                async with ingest.sync_paused():
                    await ingest.on_disk(how, self._disk, ingest.path)
            finally:
                self.drop(ingest)

    def drop(self, ingest: Ingest) -> None:
        """Remove an ended ingest from the table. If its bytes are still on disk, it stays as a resumable ingest."""
        if ingest.data.exists():
            left = Ingest(self._disk, ingest.path, ingest.meta, ingest.offset, self._nursery)
            self._ingests[ingest.meta.ref] = left
            ingest.released.set()
        else:
            self.forget(ingest)

    def forget(self, ingest: Ingest) -> None:
        """Remove an ended ingest from the table; its bytes belong to a blob."""
        self._ingests.pop(ingest.meta.ref)
        ingest.released.set()

    def enter(self, ref: str, ingest: Ingest | None) -> None:
        """Make `ref` mean `ingest`, or nothing."""
        if ingest is None:
            self._ingests.pop(ref)
        else:
            self._ingests[ref] = ingest


async def rename(table: IngestTable, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
    """Give `ingest` the ref `new`, replacing `replaced`. The caller holds both. Atomic, durable, and not cancelled.

    If the disk accepts the new record and then refuses to move the directory, this raises although the ref has changed.
    The directory is moved before anything else happens to either ref.

    Raises Busy if `new` means another ingest by now; NoSpace, StorageFailed.
    """
    with trio.CancelScope(shield=True):
        async with ingest.turn(), AsyncExitStack() as others:
            await table.place_directory(ingest)
            if replaced is not None:
                await others.enter_async_context(replaced.turn())
                await table.place_directory(replaced)
            await table.free_path(new)
            old = ingest.meta.ref
            await _declare(table, ingest, replaced, new)
            try:
                if replaced is not None:
                    replaced.end(Cancelled(f"{replaced.subject}: was replaced"))
                    await others.enter_async_context(replaced.sync_paused())
                await table.place_directory(ingest)
            finally:
                table.enter(old, None)


async def _declare(table: IngestTable, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
    if table.get(new) is not replaced:
        raise Busy(f"ingest {new!r}: was started or removed meanwhile; try again")
    table.enter(new, ingest)
    try:
        await ingest.declare(ref=new)
    except ImgfsError:
        table.enter(new, replaced)
        raise
