""".imgfs/gc/: what garbage collection would remove, and the last report, as JSON. Reading changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

from imgfs.fs.files import ReportFile
from imgfs.fs.node import FixedDirectory, Shown
from imgfs.gc.collector import Collector
from imgfs.oci.digest import Digest


class GcDirectory(FixedDirectory):
    """`dry-run`, `dry-run-all` (including content that cannot be fetched again) and `last`."""

    __slots__ = ("_collector", "_last")

    def __init__(self, shown: Shown, collector: Collector) -> None:
        renderers = {
            b"dry-run": self._dry_run,
            b"dry-run-all": self._dry_run_all,
            b"last": self._tell_last,
        }
        children = {name: ReportFile(f".imgfs/gc/{name.decode()}", shown, render) for name, render in renderers.items()}
        super().__init__(".imgfs/gc", shown, children)
        self._collector = collector
        self._last = b"{}\n"

    async def run(self, *, everything: bool) -> None:
        """Collect garbage and keep the report."""
        self._last = (await self._collector.collect(everything=everything)).encode()

    async def discard(self, digests: Iterable[Digest]) -> None:
        """Remove those of these blobs that nothing refers to, and keep the report."""
        self._last = (await self._collector.discard(digests)).encode()

    async def _dry_run(self) -> bytes:
        return (await self._collector.collect(dry_run=True)).encode()

    async def _dry_run_all(self) -> bytes:
        return (await self._collector.collect(everything=True, dry_run=True)).encode()

    async def _tell_last(self) -> bytes:
        return self._last
