"""An unfinished write gets another ref: its record says so first, so that a crash from there on is made good."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from imgfs.content.ingests.directories import move, remove
from imgfs.content.ingests.ingest import Ingest
from imgfs.content.ingests.table import IngestTable
from imgfs.disk.calls import Disk
from imgfs.errors import Busy, Cancelled, ImgfsError


async def rename(table: IngestTable, disk: Disk, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
    """Call `ingest` `new`, in the place of `replaced`; the caller holds both. Not cancelled, atomic and durable.

    Raises Busy where `new` means another ingest by now; NoSpace, StorageFailed.
    """
    with trio.CancelScope(shield=True):
        async with ingest.turn(), AsyncExitStack() as others:
            if replaced is not None:
                await others.enter_async_context(replaced.turn())
            old = ingest.meta.ref
            await _declare(table, ingest, replaced, new)
            try:
                await _move(table, disk, ingest, replaced, new)
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


async def _move(table: IngestTable, disk: Disk, ingest: Ingest, replaced: Ingest | None, new: str) -> None:
    if replaced is not None:
        replaced.end(Cancelled(f"{replaced.subject}: was replaced"))
        async with replaced.at_rest():
            await replaced.on_disk(remove, disk, replaced.path)
    async with ingest.at_rest():
        final = table.path(new)
        await ingest.on_disk(move, disk, ingest.path, final)
        ingest.moved(final)
