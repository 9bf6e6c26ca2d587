"""What a run of garbage collection or eviction found and did, and the sums over all runs of this daemon."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from imgfs.encoding import indented_json
from imgfs.metrics.family import Family, counter

Mode = Literal["collect", "evict"]
_MODES: tuple[Mode, ...] = ("collect", "evict")
ItemKind = Literal["snapshot", "metadata", "layer", "blob", "ingest", "catalogue", "container"]
"""A chain's row, its metadata image, an uncompressed tar, a blob, an unfinished write, the catalogue's rows for a
digest, and how a deleted container ended."""


class GarbageItem(msgspec.Struct, frozen=True):
    """One thing: its kind, its chain ID, diff ID, digest, ref or ID, its bytes on disk, and why it is listed."""

    kind: ItemKind
    id: str
    bytes: int
    why: str


class GarbageReport(msgspec.Struct, kw_only=True):
    """The result of one run. A dry run has the same report.

    `kept` are things that nothing refers to and that stay anyway; `failed` are things that could not be removed.
    `refused` is a sentence if the run judged nothing, else empty.
    """

    mode: Mode
    dry_run: bool = False
    refused: str = ""
    removed: list[GarbageItem] = []
    kept: list[GarbageItem] = []
    failed: list[GarbageItem] = []

    @property
    def bytes(self) -> int:
        """Bytes on disk of the removed things. The disk frees those of an open file when its last reader closes it."""
        return sum(item.bytes for item in self.removed)

    def encode(self) -> bytes:
        """The report as JSON, with a final newline."""
        return indented_json(msgspec.structs.asdict(self) | {"bytes": self.bytes})


class GarbageTotals:
    """Sums over the reports of this daemon. A dry run counts nothing."""

    def __init__(self) -> None:
        self._runs: Counter[Mode] = Counter()
        self._bytes: Counter[Mode] = Counter()
        self._removed: Counter[tuple[Mode, str]] = Counter()
        self._failed: Counter[Mode] = Counter()

    def add(self, report: GarbageReport) -> None:
        """Count a run that has ended."""
        if report.dry_run:
            return
        mode = report.mode
        self._runs[mode] += 1
        self._bytes[mode] += report.bytes
        self._failed[mode] += len(report.failed)
        for item in report.removed:
            self._removed[mode, item.kind] += 1

    def families(self) -> list[Family]:
        """The metrics of garbage collection."""
        mode = ("mode",)
        removed = {(mode, kind): count for (mode, kind), count in self._removed.items()}
        return [
            counter("imgfs_gc_runs_total", "Collections and evictions.", mode, _by_mode(self._runs)),
            counter("imgfs_gc_freed_bytes_total", "Bytes on disk of what was removed.", mode, _by_mode(self._bytes)),
            counter("imgfs_gc_removed_total", "Things that were removed.", ("mode", "kind"), removed),
            counter("imgfs_gc_failed_total", "Things that could not be removed.", mode, _by_mode(self._failed)),
        ]


def _by_mode(counts: Counter[Mode]) -> dict[tuple[str, ...], float]:
    return {(mode,): counts[mode] for mode in _MODES}
