"""What was learnt about hosts that stand in for one another: who is down for a while, who sent wrong bytes of what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import trio

K = TypeVar("K")
V = TypeVar("V")

DOWN_SECONDS = 30.0
"""How long a host that could not be reached is asked last; it doubles with each time, up to DOWN_MAX."""
DOWN_MAX = 300.0
SHUNNED_SECONDS = 600.0
KEPT_MAX = 4096
"""Hosts that are down, and wrong blobs, of which something is known at a time: names that are looked up have no end."""


@dataclass(slots=True)
class _Down:
    noted: float
    until: float
    seconds: float


class Health:
    """Of all hosts, by authority. In memory only: a new daemon finds out anew."""

    def __init__(self) -> None:
        self._down: dict[str, _Down] = {}
        self._shunned: dict[tuple[str, str], float] = {}

    def is_down(self, authority: str) -> bool:
        """Whether others should be asked first."""
        found = self._down.get(authority)
        return found is not None and trio.current_time() < found.until

    def probe(self, authority: str) -> None:
        """`authority` will be asked now: until it is known how it went, one caller's wait is enough."""
        if (found := self._down.get(authority)) and not self.is_down(authority):
            found.until = trio.current_time() + found.seconds

    def failed(self, authority: str, asked: float) -> None:
        """It could not be reached, or was too slow, for a request that was sent at the time `asked`.

        Of requests that were on the way together only the first counts.
        """
        now, found = trio.current_time(), self._down.get(authority)
        if found is None or asked > found.noted:
            seconds = DOWN_SECONDS if found is None else min(2 * found.seconds, DOWN_MAX)
            self._down.pop(authority, None)
            if len(self._down) >= KEPT_MAX:
                self._down = _newest({host: one for host, one in self._down.items() if one.until > now})
            self._down[authority] = _Down(now, now + seconds, seconds)

    def well(self, authority: str) -> None:
        """It answered."""
        self._down.pop(authority, None)

    def shun(self, authority: str, what: str) -> None:
        """It sent wrong bytes of `what`."""
        now = trio.current_time()
        if len(self._shunned) >= KEPT_MAX:
            self._shunned = _newest({key: until for key, until in self._shunned.items() if until > now})
        self._shunned[authority, what] = now + SHUNNED_SECONDS

    def is_shunned(self, authority: str, what: str) -> bool:
        """Whether it sent wrong bytes of `what` within the last ten minutes."""
        return self.shunned_for(authority, what) > 0

    def shunned_for(self, authority: str, what: str) -> float:
        """For how many seconds it is still asked last for `what`; 0 for who sent no wrong bytes."""
        return max(0.0, self._shunned.get((authority, what), 0.0) - trio.current_time())


def _newest(known: dict[K, V]) -> dict[K, V]:
    """Of what was learnt, half of KEPT_MAX at most."""
    return dict(list(known.items())[-KEPT_MAX // 2 :])
