"""Passes over blobs, for whoever wants one of these as content meanwhile: the bytes that come are his too.

Owns who waits for the blob of a pass. That a pass keeps the bytes, from the first one on, is copies.py's doing; that
they become a blob, layers.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable

import trio

from imgfs.errors import ImgfsError
from imgfs.oci.digest import Digest
from imgfs.transfer.places import Wanted


class Passing:
    """What is on its way as a layer. `hurried` is set when somebody waits for what is left to do once it is verified.

    `accompany` waits for the flight of the pass, and keeps it going.
    """

    def __init__(self, wanted: Wanted, accompany: Callable[[], Awaitable[None]]) -> None:
        self.wanted = wanted
        self.hurried = trio.Event()
        self._accompany = accompany
        self._readers = 0
        self._over = trio.Event()
        self._error: ImgfsError | None = None

    @property
    def is_read(self) -> bool:
        """Whether somebody waits for the blob."""
        return self._readers > 0

    async def wait(self) -> None:
        """Wait until the blob is stored or will not be. Raises why the pass failed. Cancelled, leaves it to others."""
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
        """The blob is stored or will not be, maybe because the pass failed."""
        if not self._over.is_set():
            self._error = error
            self._over.set()


class Passes:
    """Those of one daemon that have begun, by what they are for."""

    def __init__(self) -> None:
        self._begun: dict[Wanted, Passing] = {}

    def __contains__(self, passing: Passing) -> bool:
        return self._begun.get(passing.wanted) is passing

    def find(self, wanted: Wanted) -> Passing | None:
        """The pass over the same bytes, promised alike, from the same registries."""
        return self._begun.get(wanted)

    def is_passing(self, digest: Digest) -> bool:
        """Whether any pass goes over a blob of this digest."""
        return any(wanted.digest == digest for wanted in self._begun)

    def begin(self, passing: Passing) -> None:
        """From now on it can be found."""
        self._begun[passing.wanted] = passing

    def end(self, passing: Passing, error: ImgfsError | None = None) -> None:
        """Nobody finds it any more, and who waits for it goes on, or is told what it failed of."""
        if passing in self:
            del self._begun[passing.wanted]
        passing.end(error)
