"""Plain counters per registry: what was asked, received and asked again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from imgfs.errors import ImgfsError, NotFound


@dataclass(slots=True)
class HostStatistics:
    """Counters of one registry, its redirect targets and token endpoint included.

    `requests` counts requests sent by kind: `manifest`, `tag` (HEAD), `blob`, `token`, `ping` (`/v2/`), `tags`,
    `catalog` and `referrers` (each page), `redirect` (every further hop); of pushes `exists` (HEAD), `mount`, `upload`
    (each request of one) and `push` (a manifest). `failures` counts what went wrong by class of
    error, whether another try or another host mended it or not; that something is not there is no failure.
    """

    requests: Counter[str] = field(default_factory=Counter[str])
    received: int = 0
    """Bytes of bodies."""
    retries: int = 0
    pauses: int = 0
    """How often the registry asked to be left alone for a while (429, 503)."""
    failures: Counter[str] = field(default_factory=Counter[str])
    sent: int = 0
    """Bytes of blobs and manifests sent, those that had to be sent again included."""

    def failed(self, error: ImgfsError) -> None:
        """Count a failure, and log nothing."""
        if not isinstance(error, NotFound):
            self.failures[type(error).__name__] += 1

    def copy(self) -> HostStatistics:
        """A copy that stays as it is."""
        return HostStatistics(
            self.requests.copy(), self.received, self.retries, self.pauses, self.failures.copy(), self.sent
        )


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of all counters, keyed by the registry's host as references name it."""

    hosts: dict[str, HostStatistics]

    def families(self) -> dict[str, dict[tuple[tuple[str, str], ...], int]]:
        """The counters as metrics name them: by name, then by labels."""
        hosts = sorted(self.hosts.items())
        return {
            "requests": {
                (("host", name), ("kind", kind)): count for name, one in hosts for kind, count in one.requests.items()
            },
            "failures": {
                (("host", name), ("error", error)): count
                for name, one in hosts
                for error, count in one.failures.items()
            },
            "received_bytes": {(("host", name),): one.received for name, one in hosts},
            "sent_bytes": {(("host", name),): one.sent for name, one in hosts},
            "retries": {(("host", name),): one.retries for name, one in hosts},
            "pauses": {(("host", name),): one.pauses for name, one in hosts},
        }

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
