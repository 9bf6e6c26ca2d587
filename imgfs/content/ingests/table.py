"""Which unfinished writes there are, by ref, and who holds each: one at a time.

Owns making and removing their directories too, so that a ref is in the table exactly as long as it has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import trio

from imgfs.content.ingests.directories import RecoveredIngest, make, move, read, recover, remove, unfinished
from imgfs.content.ingests.ingest import Ingest
from imgfs.content.ingests.meta import IngestMeta, era_of
from imgfs.content.ingests.refs import parse_ref, ref_id
from imgfs.disk.calls import Disk
from imgfs.errors import Busy, Cancelled, ImgfsError, NotFound
from imgfs.oci.digest import Digest

RELEASE_SECONDS = 0.1
"""How long to wait for a writer that is closing: the kernel's RELEASE comes after close(2) has returned."""


class IngestTable:
    """Ingests by ref. While one is renamed it has two."""

    def __init__(self, disk: Disk, directory: Path, nursery: trio.Nursery) -> None:
        self._disk = disk
        self._directory = directory
        self._nursery = nursery
        self._era = ""
        self._ingests: dict[str, Ingest] = {}

    def load(self, era: str | None, *, read_only: bool) -> None:
        """Find what an earlier run left, once. `era` is what era_of says unless somebody knows better; blocks."""
        if not self._directory.is_dir():
            return
        self._era = era or era_of(self._directory)
        for one in self._peek() if read_only else list(recover(self._disk, self._directory, self._era)):
            known = self.get(one.meta.ref)
            if known is not None and known.path != self.path(one.meta.ref):
                continue  # that one took its place, in a renaming that the disk still refuses to finish
            ingest = self._ingests[one.meta.ref] = Ingest(self._disk, one.path, one.meta, one.offset, self._nursery)
            if one.meta.updated < one.meta.started:
                ingest.touched.now()  # the clock was set back meanwhile, so nobody knows

    def _peek(self) -> Iterator[RecoveredIngest]:
        for path in unfinished(self._directory):
            with suppress(OSError, ImgfsError):
                yield read(path, self._era)

    def __iter__(self) -> Iterator[Ingest]:
        """Each once. What comes or goes meanwhile does no harm."""
        return iter(list(dict.fromkeys(self._ingests.values())))

    def __contains__(self, ref: str) -> bool:
        return ref in self._ingests

    def get(self, ref: str) -> Ingest | None:
        """The ingest of a ref, if there is one."""
        return self._ingests.get(ref)

    def find(self, ref: str) -> Ingest:
        """The ingest of a ref. Raises NotFound, Invalid."""
        ingest = self.get(parse_ref(ref))
        if ingest is None:
            raise NotFound(f"ingest {ref!r}: does not exist")
        return ingest

    def path(self, ref: str) -> Path:
        """The directory of an ingest that is called `ref`."""
        return self._directory / ref_id(ref)

    async def settle(self, ingest: Ingest) -> None:
        """Have the directory of an ingest, whose lock the caller holds, where its ref says, after a renaming that the
        disk refused half-way: until then what it took the place of lies there. Raises NoSpace, StorageFailed.
        """
        final = self.path(ingest.meta.ref)
        if ingest.path == final:
            return
        with trio.CancelScope(shield=True):
            async with ingest.at_rest():
                await ingest.on_disk(move, self._disk, ingest.path, final)
                ingest.moved(final)
                await ingest.on_disk(self._disk.fsync_directory, self._directory)

    async def vacate(self, ref: str) -> None:
        """Settle whose directory still has the name that one of a new ingest `ref` will have.

        At its end, without a checkpoint in between, nobody's has. Raises as `settle`, and why that ingest is gone.
        """
        while (lodger := self._lodger(ref)) is not None:
            async with lodger.turn():
                await self.settle(lodger)

    def _lodger(self, ref: str) -> Ingest | None:
        path = self.path(ref)
        if ref in self._ingests or not path.exists():
            return None
        return next((one for one in self if one.path == path), None)

    async def hold(self, ref: str, total: int | None, expected: Digest | None) -> tuple[Ingest, bool]:
        """Be the one holder of a ref, which is started if need be: the second value tells whether it was.

        Raises Busy if another holder stays for 100 ms; NoSpace, StorageFailed.
        """
        with trio.move_on_after(RELEASE_SECONDS):
            while True:
                await self.vacate(ref)
                ingest = self.get(ref)
                if ingest is None:
                    return await self._start(ref, total, expected), True
                if not ingest.is_held and ingest.gone is None:
                    ingest.is_held, ingest.released = True, trio.Event()
                    return ingest, False
                await ingest.released.wait()
        raise Busy(f"ingest {ref!r}: another writer is at work; wait for it, or remove the ref")

    async def hold_known(self, ref: str) -> Ingest:
        """As `hold`, without starting one. Raises NotFound, also if the holder took it away."""
        ingest = self.find(ref)
        with trio.move_on_after(RELEASE_SECONDS):
            while ingest.is_held:
                await ingest.released.wait()
                ingest = self.find(ref)
            ingest.is_held, ingest.released = True, trio.Event()
            return ingest
        raise Busy(f"ingest {ref!r}: its writer is at work; close it first")

    @contextmanager
    def held(self, ingest: Ingest) -> Generator[None]:
        """Hold one that nobody holds, at once, for as long as the block runs. It counts as unused all the same."""
        ingest.is_held, ingest.released = True, trio.Event()
        try:
            yield
        finally:
            ingest.is_held = False
            ingest.released.set()

    def release(self, ingest: Ingest) -> None:
        """The holder is done."""
        ingest.touched.now()
        ingest.is_held = False
        ingest.released.set()

    async def _start(self, ref: str, total: int | None, expected: Digest | None) -> Ingest:
        """A new ingest, held by the caller; it is in the table before its directory is made, so that there is one."""
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
        """End an ingest, whose lock the caller holds. The ref is free once the directory is gone.

        Where the disk refuses that, the ref stays with its bytes, for another attempt; a writer is sent away anyhow.
        """
        ingest.end(reason)
        with trio.CancelScope(shield=True):
            try:
                await self.settle(ingest)
                async with ingest.at_rest():
                    await ingest.on_disk(how, self._disk, ingest.path)
            finally:
                self.drop(ingest)

    def drop(self, ingest: Ingest) -> None:
        """Take an ended ingest from the table; what the disk did not let go is there as if somebody resumed it."""
        if ingest.data.exists():
            left = Ingest(self._disk, ingest.path, ingest.meta, ingest.offset, self._nursery)
            self._ingests[ingest.meta.ref] = left
            ingest.released.set()
        else:
            self.forget(ingest)

    def forget(self, ingest: Ingest) -> None:
        """Take an ended ingest from the table whose bytes are somebody else's now."""
        self._ingests.pop(ingest.meta.ref)
        ingest.released.set()

    def enter(self, ref: str, ingest: Ingest | None) -> None:
        """Have `ref` mean another ingest, or none."""
        if ingest is None:
            self._ingests.pop(ref)
        else:
            self._ingests[ref] = ingest


async def rename(table: IngestTable, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
    """Call `ingest` `new`, in the place of `replaced`; the caller holds both. Not cancelled, atomic and durable.

    Where the disk takes the record and then refuses to move the directory, this raises and the ingest is called `new`
    all the same; the directory follows before anything else is done to either ref.

    Raises Busy where `new` means another ingest by now; NoSpace, StorageFailed.
    """
    with trio.CancelScope(shield=True):
        async with ingest.turn(), AsyncExitStack() as others:
            await table.settle(ingest)
            if replaced is not None:
                await others.enter_async_context(replaced.turn())
                await table.settle(replaced)
            await table.vacate(new)
            old = ingest.meta.ref
            await _declare(table, ingest, replaced, new)
            try:
                if replaced is not None:
                    replaced.end(Cancelled(f"{replaced.subject}: was replaced"))
                    await others.enter_async_context(replaced.at_rest())
                await table.settle(ingest)
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
