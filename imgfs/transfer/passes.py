"""Running passes over blobs. A reader that wants the blob as content waits for the pass, so the bytes come once.

This module owns the readers that wait for the blob of a pass. copies.py keeps the bytes of a pass from the first one
on. layer_sync.py stores them as a blob.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable

import trio

from imgfs.errors import ImgfsError
from imgfs.oci.digest import Digest
from imgfs.transfer.locations import FetchKey


class Passing:
    """A pass that unpacks a blob as a layer. `hurried` is set when a caller waits until the layer is durable.

    `accompany` waits for the flight of the pass, and keeps the flight alive.
    """

    def __init__(self, wanted: FetchKey, accompany: Callable[[], Awaitable[None]]) -> None:
        self.wanted = wanted
        self.hurried = trio.Event()
        self._accompany = accompany
        self._readers = 0
        self._over = trio.Event()
        self._error: ImgfsError | None = None

    @property
    def is_read(self) -> bool:
        """Whether a reader waits for the blob."""
        return self._readers > 0

    async def wait(self) -> None:
        """Wait until the blob is stored or cannot be stored any more. Raises the error of the pass.

        A cancelled caller leaves the pass to the other callers.
        """
        self._readers += 1
        self.hurried.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accompany)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._readers -= 1
        if self._error is not None:
            raise copy.copy(self._error)

    def end(self, error: ImgfsError | None) -> None:
        """Release the waiting readers: the blob is stored, or will not be stored, with `error` if the pass failed."""
        if not self._over.is_set():
            self._error = error
            self._over.set()


class Passes:
    """The running passes of one daemon, by the blob that they read."""

    def __init__(self) -> None:
        self._begun: dict[FetchKey, Passing] = {}

    def __contains__(self, passing: Passing) -> bool:
        return self._begun.get(passing.wanted) is passing

    def find(self, wanted: FetchKey) -> Passing | None:
        """Return the pass over the same blob from the same registries; None if there is none."""
        return self._begun.get(wanted)

    def is_passing(self, digest: Digest) -> bool:
        """Return whether a pass over a blob of this digest is running."""
        return any(wanted.digest == digest for wanted in self._begun)

    def begin(self, passing: Passing) -> None:
        """Register a pass, so that readers find it."""
        self._begun[passing.wanted] = passing

    def end(self, passing: Passing, error: ImgfsError | None = None) -> None:
        """Unregister a pass and release its readers, with `error` if it failed."""
        if passing in self:
            del self._begun[passing.wanted]
        passing.end(error)
