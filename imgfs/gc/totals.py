"""What all runs of this daemon have done together."""

from __future__ import annotations

from collections import Counter

from imgfs.gc.report import Mode, Report
from imgfs.metrics.family import Family, counter

_MODES: tuple[Mode, ...] = ("collect", "evict")


class Totals:
    """Sums over reports; a dry run does nothing and counts nothing."""

    def __init__(self) -> None:
        self._runs: Counter[Mode] = Counter()
        self._bytes: Counter[Mode] = Counter()
        self._removed: Counter[tuple[Mode, str]] = Counter()
        self._failed: Counter[Mode] = Counter()

    def add(self, report: Report) -> None:
        """A run has ended."""
        if report.dry_run:
            return
        mode = report.mode
        self._runs[mode] += 1
        self._bytes[mode] += report.bytes
        self._failed[mode] += len(report.failed)
        for item in report.removed:
            self._removed[mode, item.kind] += 1

    def families(self) -> list[Family]:
        """What metrics tell of garbage."""
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
