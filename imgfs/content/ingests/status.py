"""How an unfinished write stands, for listings and progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgfs.content.ingests.ingest import Ingest
from imgfs.metrics.family import Family, counter, gauge
from imgfs.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """An ingest as it stands: times are ns since the epoch, sizes are bytes.

    `offset` bytes are on disk, the first `hashed` of them are in `digest`, the first `durable` are recorded as synced.
    `path` is the file of the bytes. `is_copy`: it is kept beside what somebody verifies now, and goes then. So many
    seconds at most it `rests` without anybody who held or declared it.
    """

    ref: str
    offset: int
    hashed: int
    durable: int
    digest: Digest
    total: int | None
    expected: Digest | None
    started: int
    updated: int
    is_live: bool
    is_copy: bool
    rests: float
    path: Path


def status_of(ingest: Ingest) -> IngestStatus:
    """The status at this moment."""
    ingest.progress()
    meta, running = ingest.meta, ingest.running
    return IngestStatus(
        ref=meta.ref,
        offset=ingest.offset,
        hashed=running.position,
        durable=meta.durable,
        digest=running.digest,
        total=meta.total,
        expected=meta.expected,
        started=meta.started,
        updated=ingest.updated,
        is_live=ingest.is_held,
        is_copy=ingest.is_held and ingest.is_copy,
        rests=0.0 if ingest.is_held else ingest.touched.age(),
        path=ingest.data,
    )


Outcome = Literal["started", "committed", "aborted"]
OUTCOMES: tuple[Outcome, ...] = ("started", "committed", "aborted")


class IngestTally:
    """How many were started since the start, and how they ended."""

    def __init__(self) -> None:
        self._counted: Counter[Outcome] = Counter()
        self._committed_bytes = 0

    def count(self, outcome: Outcome, *, committed_bytes: int = 0) -> None:
        """One more; of one that was committed, the bytes."""
        self._counted[outcome] += 1
        self._committed_bytes += committed_bytes

    def families(self, ingests: Iterable[Ingest]) -> list[Family]:
        """Those, and how `ingests` stand now."""
        held = [one.is_held for one in ingests]
        stand = {("writing",): sum(held), ("resting",): len(held) - sum(held)}
        counted = {(outcome,): self._counted[outcome] for outcome in OUTCOMES}
        committed = {(): self._committed_bytes}
        return [
            gauge("imgfs_ingests", "Unfinished writes.", ("state",), stand),
            counter("imgfs_ingests_total", "Writes that were started, and how they ended.", ("event",), counted),
            counter("imgfs_ingests_committed_bytes_total", "Bytes of ingests that became blobs.", (), committed),
        ]
