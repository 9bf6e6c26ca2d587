"""What metrics tell of unfinished writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from imgfs.content.ingests.ingest import Ingest
from imgfs.metrics.family import Family, counter, gauge

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
