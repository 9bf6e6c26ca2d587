"""The content of `.imgfs/metrics`: the metrics of each package and of the daemon's process."""

from __future__ import annotations

import os
import resource

from imgfs import __version__
from imgfs.content.plugin import CONTENT, INGESTS
from imgfs.fs.statistics import FuseStatistics
from imgfs.gc.plugin import GC
from imgfs.images.plugin import NAMES
from imgfs.layers.plugin import LAYERS
from imgfs.metrics.exposition import render
from imgfs.metrics.family import Family, counter, gauge
from imgfs.plugins.started import RunningPlugins
from imgfs.registry.plugin import REGISTRY
from imgfs.rootfs.plugin import ROOTFS
from imgfs.transfer.plugin import TRANSFER


async def exposed(running: RunningPlugins, statistics: FuseStatistics, started: int) -> bytes:
    """Return all metrics as text. `started` is the start time of the daemon, in ns since the epoch."""
    families = [
        *_process(started),
        *_known(running),
        *running.one(TRANSFER).transfers.families(),
        *running.one(REGISTRY).statistics().families(),
        *statistics.families(),
        *running.one(INGESTS).families(),
        *await running.one(GC).families(),
    ]
    return render(families).encode()


def _process(started: int) -> list[Family]:
    """Return the metrics of the process, with the names that Prometheus client libraries use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return [
        gauge("imgfs_info", "Which imgfs this is.", ("version",), {(__version__,): 1}),
        gauge("process_start_time_seconds", "When the daemon started, since the epoch.", (), {(): started / 1e9}),
        gauge("process_resident_memory_bytes", "Memory that the daemon takes.", (), {(): _resident()}),
        gauge("process_open_fds", "Files that the daemon has open.", (), {(): len(os.listdir("/proc/self/fd"))}),
        counter("process_cpu_seconds_total", "User and system time.", (), {(): used.ru_utime + used.ru_stime}),
    ]


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _known(running: RunningPlugins) -> list[Family]:
    """Return the number of stored names, blobs and layers, and of mounted views."""
    return [
        gauge("imgfs_names", "Registered names.", (), {(): len(running.one(NAMES))}),
        gauge("imgfs_blobs", "Stored blobs.", (), {(): len(running.one(CONTENT))}),
        gauge("imgfs_layers", "Stored layers.", (), {(): len(running.one(LAYERS))}),
        gauge("imgfs_views_mounted", "Mounted kernel views and snapshots.", (), {(): len(running.one(ROOTFS).places)}),
    ]
