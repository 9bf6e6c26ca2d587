"""Counts and durations of FUSE requests, for metrics."""

from __future__ import annotations

from collections import defaultdict

from imgfs.fs.caller import Waiters
from imgfs.metrics.family import Family, counter, gauge, histogram
from imgfs.metrics.histogram import Histogram


class FuseStatistics:
    """Statistics of one session. Requests that the kernel answers itself, such as in a kernel view, are not counted."""

    def __init__(self, waiters: Waiters) -> None:
        self.waiters = waiters
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """Durations by operation."""
        self.read_bytes = 0

    def families(self) -> list[Family]:
        """Return the metrics of the tree."""
        of_kind = {(kind,): one for kind, one in self.seconds.items()}
        return [
            histogram("imgfs_fuse_operation_seconds", "Requests of the kernel, by kind.", ("operation",), of_kind),
            counter(
                "imgfs_fuse_read_bytes_total", "Bytes that reads of the tree were given.", (), {(): self.read_bytes}
            ),
            gauge("imgfs_waiting", "Requests that wait in the tree now.", (), {(): self.waiters.count}),
            histogram("imgfs_wait_seconds", "Waits, those that were left too.", (), {(): self.waiters.seconds}),
        ]
