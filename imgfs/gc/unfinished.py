"""Unfinished writes without a writer: kept to go on from.

imgfs's own downloads that broke off are the first to go when room is short. Under their refs a user may have written
too. That makes no difference: what is there is a part of what can be fetched. Others are somebody's work until nobody
has gone on with them for long.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from imgfs.aio.threads import run_disk
from imgfs.content.ingests.downloads import copy_ref, download_ref
from imgfs.content.ingests.refs import promised_digest, ref_name
from imgfs.content.ingests.status import IngestStatus
from imgfs.content.ingests.store import IngestStore
from imgfs.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A part of the blob `digest`, without a writer, and the bytes that it takes on disk."""

    status: IngestStatus
    digest: Digest
    bytes: int


async def unfinished(ingests: IngestStore) -> list[Unfinished]:
    """All of them, in the order of their refs."""
    idle = sorted((status for status in ingests if not status.is_live), key=lambda status: status.ref)
    return await run_disk(_measure, [(status, digest) for status in idle if (digest := _own(status.ref))])


async def abandoned(ingests: IngestStore, patience: float) -> list[tuple[IngestStatus, int]]:
    """Those that nobody has gone on with for `patience` seconds and the bytes they take, in the order of their refs."""
    idle = sorted((status for status in ingests if rests(status, patience)), key=lambda status: status.ref)
    return await run_disk(lambda: [(status, found) for status in idle if (found := _taken(status)) is not None])


async def taken(ingests: IngestStore) -> int:
    """Bytes on disk of all unfinished writes but copies that run: they go when what they are a copy of is here."""
    lasting = [status for status in ingests if not status.is_copy]
    return await run_disk(lambda: sum(_taken(status) or 0 for status in lasting))


def rests(status: IngestStatus, patience: float) -> bool:
    """Whether it has no writer and has had none for so many seconds."""
    return not status.is_live and status.idle_seconds >= patience


def _own(ref: str) -> Digest | None:
    digest = promised_digest(ref)
    return digest if digest is not None and ref in (copy_ref(digest), download_ref(digest)) else None


def _measure(found: list[tuple[IngestStatus, Digest]]) -> list[Unfinished]:
    measured: list[Unfinished] = []
    for status, digest in found:
        taken = _taken(status)
        if taken is not None:
            measured.append(Unfinished(status, digest, taken))
    return measured


def _taken(status: IngestStatus) -> int | None:
    """Bytes on disk; None for one that was removed meanwhile."""
    try:
        return os.stat(status.path).st_blocks * 512
    except FileNotFoundError:
        return None


def shown(ref: str) -> str:
    """The ref as reports have it: as its file is named, and text also where that is none."""
    return os.fsencode(ref_name(ref)).decode(errors="backslashreplace")
