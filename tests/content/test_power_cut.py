"""Power cuts of a real filesystem on a loop device: it is shut down without flushing its journal, repeatedly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.errors import ImgfsError
from imgfs.oci.digest import Digest
from tests.support.power import Disk

CYCLES = 12


@contextmanager
def mounted(disk: Disk) -> Iterator[Path]:
    """Mount the disk as after a boot. The caller must leave no open file on it."""
    disk.mount()
    try:
        yield disk.at
    finally:
        disk.unmount()


class Acknowledged:
    """What the stores have acknowledged over all cycles."""

    def __init__(self) -> None:
        self.blobs: set[Digest] = set()
        self.synced: dict[str, bytes] = {}
        self.written: dict[str, bytes] = {}

    async def blob(self, content: ContentStore, chance: random.Random) -> None:
        data = chance.randbytes(chance.choice([10, 5000, 300_000]))
        await content.add(Digest.of(data), data)
        self.blobs.add(Digest.of(data))

    async def ingest(self, ingests: IngestStore, ref: str, chance: random.Random) -> None:
        data = chance.randbytes(200_000)
        self.written[ref] = data
        async with await ingests.open(ref) as writer:
            for at in range(0, len(data), 50_000):
                await writer.write(data[at : at + 50_000])
                if chance.random() < 0.5:
                    await writer.fsync()
                    self.synced[ref] = data[: at + 50_000]
        if chance.random() < 0.5:
            self.synced.pop(ref, None)
            await ingests.commit(ref, Digest.of(data))
            self.blobs.add(Digest.of(data))

    def check(self, root: Path, nursery: trio.Nursery, era: str) -> None:
        content = ContentStore(root)
        for info in content:
            assert Digest.of(content.path(info.digest).read_bytes()) == info.digest
        assert self.blobs <= {info.digest for info in content}
        found = {status.ref: status for status in IngestStore(content, nursery, era=era)}
        for ref, status in found.items():
            assert self.written[ref].startswith(status.path.read_bytes())
        for ref, data in self.synced.items():
            assert found[ref].offset >= len(data)


async def work(disk: Disk, acknowledged: Acknowledged, chance: random.Random, cycle: int) -> None:
    """Run two kinds of writers concurrently until the power cut; they end with the errors of the dead disk."""
    async with trio.open_nursery() as background:
        content = ContentStore(disk.at)
        ingests = IngestStore(content, background, era=f"{cycle}")
        steps = chance.randrange(1, 40)

        async def until_dark(worker: int) -> None:
            nonlocal steps
            try:
                for number in range(1000):
                    if worker % 2:
                        await acknowledged.blob(content, chance)
                    else:
                        await acknowledged.ingest(ingests, f"{cycle}.{worker}.{number}", chance)
                    steps -= 1
                    if steps == 0:
                        await trio.to_thread.run_sync(disk.cut_power)
            except ImgfsError:
                assert steps <= 0

        async with trio.open_nursery() as workers:
            for worker in range(4):
                workers.start_soon(until_dark, worker)
        background.cancel_scope.cancel()


async def test_acknowledged_changes_survive_power_cuts(tmp_path: Path) -> None:
    chance = random.Random(1)
    disk = Disk(tmp_path, "ext4")
    acknowledged = Acknowledged()
    for cycle in range(CYCLES):
        with mounted(disk):
            await work(disk, acknowledged, chance, cycle)
        with mounted(disk) as root:
            async with trio.open_nursery() as nursery:
                acknowledged.check(root, nursery, era=f"{cycle} is over")
                nursery.cancel_scope.cancel()
    assert len(acknowledged.blobs) > CYCLES
