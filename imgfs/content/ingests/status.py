"""How unfinished writes stand: values for listings, progress and metrics."""

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
    """The state of an ingest at one moment: times are ns since the epoch, sizes are bytes.

    `offset` bytes are on disk. `digest` covers the first `hashed` of them. The first `durable` of them are recorded as
    synced. `path` is the file of the bytes. `is_copy`: imgfs keeps it while it verifies the same bytes, and removes it
    then. For at most `idle_seconds`, no writer has held the ingest and nothing was declared.
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
    idle_seconds: float
    path: Path


def status_of(ingest: Ingest) -> IngestStatus:
    """Return the current status."""
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
        idle_seconds=0.0 if ingest.is_held else ingest.touched.age(),
        path=ingest.data,
    )


Outcome = Literal["started", "committed", "aborted"]
OUTCOMES: tuple[Outcome, ...] = ("started", "committed", "aborted")


class IngestTally:
    """Counts how many ingests were started since the daemon's start, and how they ended."""

    def __init__(self) -> None:
        self._counted: Counter[Outcome] = Counter()
        self._committed_bytes = 0

    def count(self, outcome: Outcome, *, committed_bytes: int = 0) -> None:
        """Count one outcome. `committed_bytes` is the size of a committed ingest."""
        self._counted[outcome] += 1
        self._committed_bytes += committed_bytes

    def families(self, ingests: Iterable[Ingest]) -> list[Family]:
        """Return the metrics: the counters, and the current number of `ingests` by state."""
        held = [one.is_held for one in ingests]
        stand = {("writing",): sum(held), ("resting",): len(held) - sum(held)}
        counted = {(outcome,): self._counted[outcome] for outcome in OUTCOMES}
        committed = {(): self._committed_bytes}
        return [
            gauge("imgfs_ingests", "Unfinished writes.", ("state",), stand),
            counter("imgfs_ingests_total", "Writes that were started, and how they ended.", ("event",), counted),
            counter("imgfs_ingests_committed_bytes_total", "Bytes of ingests that became blobs.", (), committed),
        ]
