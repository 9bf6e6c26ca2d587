"""A registry to push to, a client that may push, and blobs that count how often they are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio
from trio.testing import MockClock

from imgfs.database.database import Database
from imgfs.oci.descriptor import OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.registry.client import Registry
from imgfs.registry.http.request import Outgoing, SinglePiece
from imgfs.registry.limits import Limits
from imgfs.registry.push.destination import Destination
from imgfs.testing.uploads import PushRegistry

REPOSITORY = "team/app"
CHUNK = 4096
"""Size of a part in bytes."""
SMALL = bytes(range(251)) * 8
LARGE = bytes(range(241)) * 83
"""Five parts, the last one short."""


class Bytes:
    """A blob in memory. `read` is the argument of uploads, and `spans` lists the ranges that were read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.descriptor = Descriptor(Digest.of(data), len(data), "application/octet-stream")
        self.spans: list[tuple[int, int]] = []

    def read(self, start: int, end: int) -> Outgoing:
        """Return bytes of the blob."""
        self.spans.append((start, end))
        return Outgoing.of(self.data[start:end])


class Pushing:
    """`registry` pushes to `fake`, in parts of CHUNK bytes. Waits between attempts take no time."""

    def __init__(
        self,
        clock: MockClock,
        fake: PushRegistry,
        hosts_path: Sequence[Path] = (),
        database: Database | None = None,
    ) -> None:
        self.fake = fake
        self.slept: list[float] = []
        self._clock = clock
        self.registry = Registry(
            limits=Limits(chunk=CHUNK), sleep=self._sleep, hosts_path=hosts_path, database=database
        )
        self.offsets: list[int] = []
        """The offsets that were reported as progress."""

    async def destination(self, repository: str = REPOSITORY) -> Destination:
        """Return the destination of pushes."""
        return await self.registry.destination(self.fake.host, repository)

    async def upload(self, blob: Bytes, repository: str = REPOSITORY) -> None:
        """Send a blob."""
        await (await self.destination(repository)).upload(blob.descriptor, blob.read, self.offsets.append)

    async def put(self, data: bytes, selector: str = "") -> Digest | None:
        """Send a manifest under `selector`, by default its digest."""
        descriptor = Descriptor(Digest.of(data), len(data), OCI_MANIFEST)
        return await (await self.destination()).put_manifest(selector or descriptor.digest, descriptor, data)

    async def _sleep(self, seconds: float) -> None:
        assert trio.current_time() == self._clock.current_time(), "the test has to ask for mock_clock"
        self.slept.append(seconds)
        self._clock.jump(seconds)
        await trio.lowlevel.checkpoint()


class Stopping(AsyncIterator[bytes]):
    """Returns `data` and then blocks forever. `stopped` is set when it blocks."""

    def __init__(self, data: bytes, stopped: trio.Event) -> None:
        self._piece = SinglePiece(data)
        self._stopped = stopped

    async def __anext__(self) -> bytes:
        piece = await anext(self._piece, b"")
        if not piece:
            self._stopped.set()
            await trio.sleep_forever()
        return piece


class Slow(AsyncIterator[bytes]):
    """Returns `data` in ten pieces, with twenty seconds before each."""

    def __init__(self, clock: MockClock, data: bytes) -> None:
        self._clock = clock
        self._left = data
        self._size = len(data) // 10 + 1

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        self._clock.jump(20)
        piece, self._left = self._left[: self._size], self._left[self._size :]
        return piece


def parts(fake: PushRegistry) -> list[tuple[str, str | None, int]]:
    """Return method, Content-Range and size of each request with a body."""
    return [
        (one.method, one.headers.get("content-range"), len(one.body))
        for one in fake.log
        if one.method in ("PATCH", "PUT")
    ]
