"""What the tree was asked and how long that took, for metrics."""

from __future__ import annotations

from collections import defaultdict

from imgfs.fs.caller import Waiters
from imgfs.metrics.family import Family, counter, gauge, histogram
from imgfs.metrics.histogram import Histogram


class Served:
    """Figures of one session. What the kernel answers by itself, a view of its own above all, nobody counts."""

    def __init__(self, waiters: Waiters) -> None:
        self.waiters = waiters
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """By the kind of operation."""
        self.read_bytes = 0

    def families(self) -> list[Family]:
        """What metrics tell of the tree."""
        of_kind = {(kind,): one for kind, one in self.seconds.items()}
        return [
            histogram("imgfs_fuse_operation_seconds", "Requests of the kernel, by kind.", ("operation",), of_kind),
            counter(
                "imgfs_fuse_read_bytes_total", "Bytes that reads of the tree were given.", (), {(): self.read_bytes}
            ),
            gauge("imgfs_waiting", "Requests that wait in the tree now.", (), {(): self.waiters.count}),
            histogram("imgfs_wait_seconds", "Waits, those that were left too.", (), {(): self.waiters.seconds}),
        ]
