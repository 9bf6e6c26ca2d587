"""Plain counters per registry: what was asked, received and asked again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class HostStatistics:
    """Counters of one registry, its redirect targets and token endpoint included.

    `requests` counts requests sent by kind: `manifest`, `tag` (HEAD), `blob`, `token`, `ping` (`/v2/`), `redirect`
    (every further hop).
    """

    requests: Counter[str] = field(default_factory=Counter[str])
    received: int = 0
    """Bytes of bodies."""
    retries: int = 0

    def copy(self) -> HostStatistics:
        """A copy that stays as it is."""
        return HostStatistics(self.requests.copy(), self.received, self.retries)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of all counters, keyed by the registry's host as references name it."""

    hosts: dict[str, HostStatistics]

    @property
    def requests(self) -> int:
        """Requests of every kind to every registry."""
        return sum(host.requests.total() for host in self.hosts.values())

    @property
    def received(self) -> int:
        """Bytes of bodies from every registry."""
        return sum(host.received for host in self.hosts.values())

    @property
    def retries(self) -> int:
        """Tries after a failure, at every registry."""
        return sum(host.retries for host in self.hosts.values())
