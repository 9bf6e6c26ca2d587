"""The digest of an unfinished write, which follows its end: by the way while it is written, behind when resumed."""

from __future__ import annotations

import os

import trio

from imgfs.aio.threads import run_cpu
from imgfs.content.ingests.ingest_bytes import IngestBytes
from imgfs.content.running import RunningDigest


class PrefixDigest:
    """`running` is of a prefix of the bytes that count, and of all of them after `catch_up`."""

    def __init__(self, data: IngestBytes, algorithm: str) -> None:
        self.running: RunningDigest = RunningDigest.start(algorithm)
        self._data = data
        self._hashing = trio.Lock()

    @property
    def is_behind(self) -> bool:
        """Whether there are bytes that are not in it."""
        return self.running.position < self._data.offset

    def begin_again(self, algorithm: str) -> None:
        """Start at byte 0."""
        self.running = RunningDigest.start(algorithm)

    def replace(self, before: RunningDigest, longer: RunningDigest) -> None:
        """Take what somebody made of `before`, unless it is another one by now."""
        if self.running is before:
            self.running = longer

    def offer(self, running: RunningDigest) -> None:
        """Take what somebody else made of the same bytes, if it is longer."""
        if running.position > self.running.position:
            self.running = running

    async def catch_up(self) -> None:
        """Hash what is not hashed yet, from the file, at disk speed. Raises OSError."""
        async with self._hashing:
            if self._data.gone is not None or not self.is_behind:
                return
            file = os.open(self._data.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                await self._read_on(file)
            finally:
                os.close(file)

    async def _read_on(self, file: int) -> None:
        data = self._data
        while data.gone is None and self.is_behind:
            generation, running = data.generation, self.running
            try:
                longer = await run_cpu(running.read_on, file, data.offset)
            except OSError:
                if generation == data.generation:
                    raise
                continue
            if generation == data.generation:
                self.replace(running, longer)
