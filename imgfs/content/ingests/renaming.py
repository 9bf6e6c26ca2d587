"""An unfinished write gets another ref: its record says so first, so that a crash from there on is made good."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from imgfs.content.ingests.ingest import Ingest
from imgfs.content.ingests.table import IngestTable
from imgfs.errors import Busy, Cancelled, ImgfsError


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
