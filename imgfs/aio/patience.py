"""The time that one request of a reader may spend without progress, over everything that it asks of registries.

This module counts. The registry client decides what counts as progress and when to give up.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import trio


class Patience:
    """A stopwatch that runs while at least one task waits for a registry; progress turns it back, to zero at most.

    Tasks that work for one request share one Patience, so the fetches of a config and of a layer add up, and fetches
    that run side by side do not. Time that is spent elsewhere (disk, unpacking, a queue of imgfs) does not count.
    """

    __slots__ = ("_idle", "_is_over", "_since", "_waits")

    def __init__(self) -> None:
        self._idle = 0.0
        self._since = 0.0
        self._waits = 0
        self._is_over = False

    @property
    def idle(self) -> float:
        """Seconds without progress until now."""
        return self._idle + (trio.current_time() - self._since if self._waits else 0.0)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count the time inside this context, and make this the Patience of everything that runs inside."""
        if not self._waits:
            self._since = trio.current_time()
        self._waits += 1
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self._add(0.0)
            self._waits -= 1

    def gained(self, seconds: float) -> None:
        """Turn the stopwatch back by `seconds`, because progress was made."""
        self._add(-seconds)

    def lost(self, seconds: float) -> None:
        """Add `seconds` that another request spent without progress while this request waited for its result."""
        self._add(seconds)

    def reset(self) -> None:
        """Begin again at zero."""
        self._add(-self.idle)

    def _add(self, seconds: float) -> None:
        self._idle = max(0.0, self.idle + seconds)
        self._since = trio.current_time()


_current: ContextVar[Patience | None] = ContextVar("imgfs.patience", default=None)


def current_patience() -> Patience | None:
    """The Patience of the request that this task works for. None where there is none, or where the request has ended.

    Work that goes on after its request has ended (a shared download, for example) must not inherit what the request
    has spent.
    """
    found = _current.get()
    return None if found is None or found._is_over else found  # pyright: ignore[reportPrivateUsage]


class one_request:
    """Begin a request of a reader: what runs inside, and the tasks started from there, share one Patience."""

    __slots__ = ("_patience", "_token")

    def __enter__(self) -> Patience:
        self._patience = Patience()
        self._token = _current.set(self._patience)
        return self._patience

    def __exit__(self, *_: object) -> None:
        self._patience._is_over = True  # pyright: ignore[reportPrivateUsage]
        _current.reset(self._token)
