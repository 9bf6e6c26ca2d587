"""Helpers of most tests: an image in a fake registry, a client, and waits that are recorded instead of waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imgfs.oci.descriptor import Descriptor
from imgfs.oci.reference import Reference
from imgfs.registry.client import Registry
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.limits import Limits
from imgfs.testing.registry import FakeRegistry

MANIFEST = b'{"schemaVersion":2}'
BLOB = bytes(range(251)) * 40
REPOSITORY = "team/app"


class Scene:
    """`registry` is a client of `fake`, which has MANIFEST as `team/app:1` and BLOB."""

    def __init__(
        self,
        clock: MockClock,
        fake: FakeRegistry,
        limits: Limits | None = None,
        plain_http: Collection[str] = (),
        host: str = "",
        credentials: Credentials | None = None,
        hosts_path: Sequence[Path] = (),
    ) -> None:
        self.clock = clock
        self.fake = fake
        self.slept: list[float] = []
        self.registry = Registry(
            limits=limits or Limits(),
            sleep=self._sleep,
            plain_http=plain_http,
            hosts_path=hosts_path,
            credentials=credentials,
        )
        self.digest = fake.add_manifest(REPOSITORY, "1", MANIFEST)
        self.blob = Descriptor(fake.add_blob(BLOB), len(BLOB), "application/octet-stream")
        self.host = host or fake.host
        self.reference = Reference(self.host, REPOSITORY, "1")
        self.by_digest = Reference(self.host, REPOSITORY, None, self.digest)

    async def _sleep(self, seconds: float) -> None:
        assert trio.current_time() == self.clock.current_time(), "the test has to ask for mock_clock"
        self.slept.append(seconds)
        self.clock.jump(seconds)
        await trio.lowlevel.checkpoint()

    async def ask(self, what: str) -> bytes:
        """Return the manifest, the whole blob, or the tag's digest."""
        if what == "manifest":
            return (await self.registry.manifest(self.reference))[1]
        if what == "tag":
            return (await self.registry.resolve(self.reference)).digest.encode()
        return await self.read()

    async def read(self, offset: int = 0, end: int | None = None) -> bytes:
        """Return bytes of the blob."""
        async with self.registry.blob(self.host, REPOSITORY, self.blob, offset, end) as stream:
            return b"".join([piece async for piece in stream])

    def expected(self, what: str) -> bytes:
        """Return what `ask` returns without faults."""
        return {"manifest": MANIFEST, "tag": self.digest.encode(), "blob": BLOB}[what]

    @asynccontextmanager
    async def impatience(self, seconds: float, release: bool = False) -> AsyncIterator[None]:
        """Advance the clock by `seconds` whenever an answer stalls. With `release`, the answer then continues."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_time, seconds, release)
            yield
            nursery.cancel_scope.cancel()

    async def _pass_time(self, seconds: float, release: bool) -> None:
        while stalled := await trio.to_thread.run_sync(self.fake.valve.wait_arrival, abandon_on_cancel=True):
            await wait_all_tasks_blocked(0.01)
            if not stalled.abandoned:
                self.clock.jump(seconds)
            if release:
                stalled.release()


def kinds(fake: FakeRegistry) -> list[str]:
    """Return the kinds of all requests, in order."""
    return [request.kind for request in fake.log]
