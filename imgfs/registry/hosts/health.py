"""What is known of hosts that stand in for one another: which are down, and which sent wrong bytes of which blob."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from imgfs.errors import SenderLeft, VerificationFailed
from imgfs.oci.digest import Digest
from imgfs.registry.hosts.endpoint import Endpoint

K = TypeVar("K")
V = TypeVar("V")

DOWN_SECONDS = 30.0
"""Seconds for which an unreachable host is asked last. They double with each failure, up to DOWN_MAX."""
DOWN_MAX = 300.0
SHUNNED_SECONDS = 600.0
KEPT_MAX = 4096
"""Limit for the hosts and blobs that are remembered, because users can look up any number of names."""
_KEPT = 1024
_log = logging.getLogger("imgfs.registry")


@dataclass(slots=True)
class _Down:
    noted: float
    until: float
    seconds: float


class Health:
    """Which hosts are down or sent wrong bytes, by authority. In memory only; a new daemon starts without it."""

    def __init__(self) -> None:
        self._down: dict[str, _Down] = {}
        self._shunned: dict[tuple[str, str], float] = {}

    def is_down(self, authority: str) -> bool:
        """Whether other hosts should be asked first."""
        found = self._down.get(authority)
        return found is not None and trio.current_time() < found.until

    def probe(self, authority: str) -> None:
        """Record that a caller asks `authority` now. Until the result is known, other callers still ask it last."""
        if (found := self._down.get(authority)) and not self.is_down(authority):
            found.until = trio.current_time() + found.seconds

    def failed(self, authority: str, asked: float) -> None:
        """Record that `authority` was unreachable or too slow for a request that was sent at the time `asked`.

        Of concurrent requests, only the first failure counts.
        """
        now, found = trio.current_time(), self._down.get(authority)
        if found is None or asked > found.noted:
            seconds = DOWN_SECONDS if found is None else min(2 * found.seconds, DOWN_MAX)
            self._down.pop(authority, None)
            if len(self._down) >= KEPT_MAX:
                self._down = _newest({host: one for host, one in self._down.items() if one.until > now})
            self._down[authority] = _Down(now, now + seconds, seconds)

    def well(self, authority: str) -> None:
        """Record that `authority` answered."""
        self._down.pop(authority, None)

    def shun(self, authority: str, what: str) -> None:
        """Record that `authority` sent wrong bytes of `what`."""
        now = trio.current_time()
        if len(self._shunned) >= KEPT_MAX:
            self._shunned = _newest({key: until for key, until in self._shunned.items() if until > now})
        self._shunned[authority, what] = now + SHUNNED_SECONDS

    def is_shunned(self, authority: str, what: str) -> bool:
        """Whether `authority` sent wrong bytes of `what` within the last ten minutes."""
        return self.shunned_for(authority, what) > 0

    def shunned_for(self, authority: str, what: str) -> float:
        """Return for how many seconds `authority` is still asked last for `what`; 0 if it sent no wrong bytes."""
        return max(0.0, self._shunned.get((authority, what), 0.0) - trio.current_time())


def _newest(known: dict[K, V]) -> dict[K, V]:
    """Return the newest entries, at most half of KEPT_MAX."""
    return dict(list(known.items())[-KEPT_MAX // 2 :])


class BlobSenders:
    """The hosts that sent bytes of one blob, and the hosts that are `able` to."""

    def __init__(self) -> None:
        self.able: frozenset[str] = frozenset()
        self.by: set[str] = set()
        """The hosts that were asked and led to bytes."""
        self.origins: set[str] = set()
        """The authorities that sent the bytes: these hosts, or the storage that they redirected to."""

    def add(self, host: Endpoint, origin: str) -> None:
        """Record that `origin`, which `host` is or redirected to, sent bytes."""
        self.by.add(host.authority)
        self.origins.add(origin)


class Senders:
    """The senders of recent blobs, by registry and digest."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._sent: OrderedDict[tuple[str, Digest], BlobSenders] = OrderedDict()

    def of(self, registry: str, digest: Digest, able: Sequence[Endpoint]) -> BlobSenders:
        """Return the record of the blob's senders, to be filled. `able` are the hosts that can be asked for it."""
        sent = self._sent.setdefault((registry, digest), BlobSenders())
        sent.able = frozenset(one.authority for one in able)
        self._sent.move_to_end((registry, digest))
        if len(self._sent) > _KEPT:
            self._sent.popitem(last=False)
        return sent

    def blame(self, registry: str, digest: Digest, error: VerificationFailed) -> VerificationFailed:
        """Record that the bytes were wrong, and return the error to raise; see Registry.blame."""
        sent = self._sent.pop((registry, digest), None)
        if sent is None or not sent.by:
            return error
        kind = SenderLeft if len(sent.able) > 1 and self._leave(sent, digest) else VerificationFailed
        names = ", ".join(sorted(sent.origins))
        return kind(f"{error.message}; sent by {names}: read again, or pull from another registry")

    def _leave(self, sent: BlobSenders, digest: Digest) -> bool:
        """Avoid the senders. Return whether other hosts are left, and fewer than before, so that retries end."""
        before = {one for one in sent.able if not self._health.is_shunned(one, digest)}
        for one in sorted(sent.by):
            self._health.shun(one, digest)
            _log.warning("sent wrong bytes", extra={"host": one, "digest": digest})
        return bool(before - sent.by) and bool(before & sent.by)
