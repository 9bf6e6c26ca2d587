"""When to try again: failed attempts in a row are counted, time without progress is bounded, rest is granted.

Progress is what turns back the stopwatch of the request that a call belongs to (`imgfs.aio.patience`): a read, by its
bytes at `limits.slow_rate` but not by more than it took; new bytes of a blob, by one second for `limits.gain_rate`; a
complete document, page or blob range, by `limits.gain_whole`. After `limits.patience` seconds without progress no
further try starts. After `limits.call` seconds a running one ends too. Uploads start at zero with each piece they send.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

import trio

from imgfs.aio.patience import Patience
from imgfs.errors import ImgfsError, RemoteError
from imgfs.registry.limits import Limits
from imgfs.registry.statistics import HostStatistics

Sleep = Callable[[float], Awaitable[object]]
FailureCallback = Callable[[ImgfsError], object]
"""Called with each failed attempt, also if a later attempt succeeds."""
_GRAIN = 0.001
"""Seconds that are not worth a wait; clocks round."""
_BRIEF = 1.0
"""Seconds. A shorter Retry-After counts as an ordinary failure."""

_log = logging.getLogger("imgfs.registry")


def ignore_failure(_: ImgfsError) -> None:
    """Ignore a failed attempt."""


class Pauses:
    """Until when each authority gets no request, from any caller."""

    def __init__(self, sleep: Sleep) -> None:
        self._until: dict[str, float] = {}
        self._whys: dict[str, type[RemoteError]] = {}
        self._sleep = sleep

    def pause(self, authority: str, seconds: float, why: RemoteError) -> None:
        """Send no request to `authority` for `seconds`, because it answered `why`."""
        self._until[authority] = max(self._until.get(authority, 0.0), trio.current_time() + seconds)
        self._whys[authority] = type(why)

    def resting(self, authority: str) -> bool:
        """Whether `authority` gets no request now."""
        return self._until.get(authority, 0.0) - trio.current_time() > _GRAIN

    async def wait(self, authority: str, tries: Tries, subject: str) -> None:
        """Wait until `authority` may get a request, but no longer than the rest that is left to `tries`.

        Other callers may prolong the pause meanwhile. Raises the kind of error that caused the pause if the rest is
        used up. `subject` begins the message.
        """
        while (rest := self._until.get(authority, 0.0) - trio.current_time()) > _GRAIN:
            if (granted := tries.grant(rest)) <= _GRAIN:
                told = f"{subject}: {authority} asks for rest, also after waiting; wait some minutes, then read again"
                error = self._whys[authority](told)
                tries.count(error)
                raise error
            await self._sleep(granted)
        self._until.pop(authority, None)
        self._whys.pop(authority, None)


class Tries:
    """The attempts of one call, over all requests that it needs.

    `spare` returns whether another host should be asked instead: the failed attempt is the last then, without a wait.
    `patience` is shared with the other calls of one request. `failed` is called with each failure.
    """

    def __init__(
        self,
        limits: Limits,
        sleep: Sleep,
        counters: HostStatistics,
        *,
        spare: Callable[[], bool] = lambda: False,
        patience: Patience | None = None,
        failed: FailureCallback = ignore_failure,
    ) -> None:
        self.spare = spare
        self._limits = limits
        self._sleep = sleep
        self._counters = counters
        self._tell = failed
        self.patience = patience if patience is not None else Patience()
        self._failed = 0
        self._rests = 0
        self._rested = 0.0
        self._asked = 0.0
        """Seconds of rest that answers to this call asked for, also if other callers waited for them."""

    async def again(self, error: RemoteError, *, gained: bool = False) -> None:
        """Count a failed attempt and wait before the next one. Raises `error` if there is to be no next one.

        An attempt that `gained` something before it failed resets the count, but its lost time stays counted.
        """
        if gained:
            self._failed = -1
        self._count(error, enough=self.patience.idle > self._limits.patience)
        pause = self._limits.backoff * 2 ** max(0, self._failed - 1)
        with self.patience.waiting():
            await self._sleep(pause * random.uniform(0.5, 1.5))

    def progressed(self) -> None:
        """Count a part of an upload that has arrived: failures and lost time start anew."""
        self._failed = 0
        self.patience.reset()

    def moves(self) -> None:
        """Count a piece of an upload that is sent: lost time starts anew, failures stay counted."""
        self.patience.reset()

    def completed(self) -> None:
        """Count a document, page or blob range that is here completely."""
        self._failed = 0
        self.patience.gained(self._limits.gain_whole)

    def rest(self, error: RemoteError, wanted: float) -> float:
        """Count an answer that asked for rest, and return the seconds to rest. Raises `error` at the limits.

        Such an answer is no failed attempt. The total rest and the number of requests of the call bound it. So a rate
        limit of a registry delays many callers and fails few.
        """
        self._counters.pauses += 1
        self._rests += 1
        enough = max(self._rested, self._asked) >= self._limits.pause or self._rests >= self._limits.requests
        if wanted >= _BRIEF:
            self._asked += wanted
            self._failed -= 1
        self._count(error, enough=enough)
        return min(wanted, self._limits.pause - self._rested)

    async def linger(self, wanted: float) -> None:
        """Wait longer than the `wanted` rest, after a registry has asked this call for rest several times.

        The wait doubles each time, so that the requests of one call stay within `limits.requests` and still cover the
        whole `limits.pause`. It is scattered, so that callers that were refused together do not come back together.
        """
        pause = self._limits.backoff * 2 ** (self._rests - 1) * random.uniform(0.75, 1.25)
        if wanted >= _BRIEF and pause > wanted:
            await self._sleep(self.grant(pause))

    def grant(self, wanted: float) -> float:
        """Return how many of the `wanted` seconds of rest this call may still take, and count them as taken."""
        granted = max(0.0, min(wanted, self._limits.pause - self._rested))
        self._rested += granted
        return granted

    def count(self, error: ImgfsError) -> None:
        """Count a failure after which there is no retry."""
        self._counters.failed(error)
        self._tell(error)

    def _count(self, error: RemoteError, *, enough: bool) -> None:
        self._failed += 1
        self._counters.failed(error)
        self._tell(error)
        if enough or self.spare() or self._failed >= self._limits.tries:
            raise error
        self._counters.retries += 1
        _log.warning("trying again", extra={"failed": self._failed, "error": error.message})


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), or None if it is not usable."""
    text = (value or "").strip()[:64]
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
