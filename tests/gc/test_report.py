"""The totals of all runs, as the metrics show them."""

from __future__ import annotations

from imgfs.gc.report import GarbageItem, GarbageReport, GarbageTotals
from imgfs.metrics.exposition import render
from tests.support.exposition import parse

BLOB, LAYER = GarbageItem("blob", "sha256:a", 10, "garbage"), GarbageItem("layer", "sha256:b", 300, "garbage")


def test_totals_are_per_mode_and_exclude_dry_runs() -> None:
    totals = GarbageTotals()
    totals.add(GarbageReport(mode="collect", removed=[BLOB, BLOB, LAYER], failed=[LAYER]))
    totals.add(GarbageReport(mode="collect", removed=[BLOB]))
    totals.add(GarbageReport(mode="collect", removed=[LAYER], dry_run=True))
    totals.add(GarbageReport(mode="evict", removed=[LAYER]))
    found = parse(render(totals.families()))
    assert [found["imgfs_gc_runs_total"].value(mode=mode) for mode in ("collect", "evict")] == [2, 1]
    assert [found["imgfs_gc_freed_bytes_total"].value(mode=mode) for mode in ("collect", "evict")] == [330, 300]
    assert found["imgfs_gc_removed_total"].value(mode="collect", kind="blob") == 3
    assert found["imgfs_gc_failed_total"].value(mode="collect") == 1
