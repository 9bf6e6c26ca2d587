"""Counters for each registry: requests, answers, bytes, durations, failures and retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from imgfs.errors import ImgfsError, NotFound, TimedOut
from imgfs.metrics.family import Family, counter, gauge, histogram
from imgfs.metrics.histogram import Histogram

HOSTS_MAX = 1000
OTHERS = "(others)"
Origin = Literal["registry", "mirror", "storage"]
"""The sender of bytes: the registry itself, a mirror, or the storage that either of them redirected to."""


@dataclass(slots=True)
class HostStatistics:
    """Counters of one registry or mirror, including its redirect targets and its token endpoint.

    `requests` counts requests sent by kind: `manifest`, `tag` (HEAD), `blob`, `token`, `ping` (`/v2/`), `tags`,
    `catalog` and `referrers` (each page), `redirect` (every further hop); of pushes `exists` (HEAD), `mount`, `upload`
    (each request of one) and `push` (a manifest). `failures` counts failed attempts by class of error,
    also if a later attempt or another host succeeds. NotFound is not counted.
    """

    requests: Counter[str] = field(default_factory=Counter[str])
    answers: Counter[str] = field(default_factory=Counter[str])
    """Answers by class of status, for example `2xx`."""
    throttled: int = 0
    """Answers with status 429."""
    inflight: int = 0
    """Requests whose answer has not been read to its end."""
    received: int = 0
    """Bytes of response bodies."""
    sources: Counter[Origin] = field(default_factory=Counter[Origin])
    """Bytes of response bodies, by sender."""
    retries: int = 0
    pauses: int = 0
    """Answers with Retry-After (429, 503)."""
    failures: Counter[str] = field(default_factory=Counter[str])
    sent: int = 0
    """Bytes of blobs and manifests sent, including repeated ones."""
    first_byte: Histogram = field(default_factory=Histogram)
    """Seconds from a request to the headers of its answer, including the time to connect."""
    whole: Histogram = field(default_factory=Histogram)
    """Seconds from a request to the end of its answer, or until the answer is closed."""

    @contextmanager
    def sending(self) -> Generator[None]:
        """Count a request in flight. It ends here if no answer comes, else when the answer is closed."""
        self.inflight += 1
        try:
            yield
        except BaseException:
            self.inflight -= 1
            raise

    def failed(self, error: ImgfsError) -> None:
        """Count a failure. This does not log it."""
        if not isinstance(error, NotFound):
            self.failures[type(error).__name__] += 1

    def answered(self, status: int) -> None:
        """Count an answer by its status."""
        self.answers[f"{status // 100}xx"] += 1
        self.throttled += status == 429

    def copy(self) -> HostStatistics:
        """Return a copy that later requests do not change."""
        return HostStatistics(
            self.requests.copy(),
            self.answers.copy(),
            self.throttled,
            self.inflight,
            self.received,
            self.sources.copy(),
            self.retries,
            self.pauses,
            self.failures.copy(),
            self.sent,
            self.first_byte.copy(),
            self.whole.copy(),
        )


class Counters(dict[str, HostStatistics]):
    """The counters of each host, created when they are first read.

    Users can look up any number of host names, so all hosts after the first HOSTS_MAX share the counters of OTHERS.
    """

    def __missing__(self, host: str) -> HostStatistics:
        kept = host if len(self) < HOSTS_MAX else OTHERS
        return self.setdefault(kept, HostStatistics())


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of all counters, by host as image references name it."""

    hosts: dict[str, HostStatistics]

    def families(self) -> list[Family]:
        """Return the metric families of the registry client."""
        one, host = self._one, ("host",)
        return [
            counter("imgfs_registry_requests_total", "Requests sent.", ("host", "kind"), self._each(_requests)),
            counter("imgfs_registry_answers_total", "Answers by status.", ("host", "class"), self._each(_answers)),
            counter("imgfs_registry_throttled_total", "Answers 429.", host, one(lambda of: of.throttled)),
            counter(
                "imgfs_registry_failures_total", "Failed attempts by error.", ("host", "error"), self._each(_failures)
            ),
            counter("imgfs_registry_timeouts_total", "Failed attempts that timed out.", host, one(_timeouts)),
            counter("imgfs_registry_retries_total", "Retries after a failure.", host, one(lambda of: of.retries)),
            counter("imgfs_registry_pauses_total", "Answers with Retry-After.", host, one(lambda of: of.pauses)),
            counter(
                "imgfs_registry_received_bytes_total", "Bytes of response bodies.", host, one(lambda of: of.received)
            ),
            counter("imgfs_registry_sent_bytes_total", "Bytes of request bodies.", host, one(lambda of: of.sent)),
            counter("imgfs_registry_source_bytes_total", _SOURCES, ("host", "source"), self._each(_sources)),
            gauge("imgfs_registry_inflight", "Requests in flight.", host, one(lambda of: of.inflight)),
            histogram(
                "imgfs_registry_first_byte_seconds", _FIRST_BYTE, host, self._histograms(lambda of: of.first_byte)
            ),
            histogram("imgfs_registry_request_seconds", _WHOLE, host, self._histograms(lambda of: of.whole)),
        ]

    @property
    def requests(self) -> int:
        """Number of requests of all kinds to all registries."""
        return sum(host.requests.total() for host in self.hosts.values())

    @property
    def received(self) -> int:
        """Bytes of response bodies from all registries."""
        return sum(host.received for host in self.hosts.values())

    @property
    def retries(self) -> int:
        """Number of retries at all registries."""
        return sum(host.retries for host in self.hosts.values())

    def _one(self, figure: Callable[[HostStatistics], float]) -> dict[tuple[str, ...], float]:
        return {(name,): figure(one) for name, one in self.hosts.items()}

    def _each(
        self, figures: Callable[[HostStatistics], Mapping[str, int] | Mapping[Origin, int]]
    ) -> dict[tuple[str, ...], float]:
        return {(name, what): count for name, one in self.hosts.items() for what, count in figures(one).items()}

    def _histograms(self, which: Callable[[HostStatistics], Histogram]) -> dict[tuple[str, ...], Histogram]:
        return {(name,): which(one) for name, one in self.hosts.items()}


_SOURCES = "Bytes of response bodies by sender: the registry, a mirror, or storage that either of them redirected to."
_FIRST_BYTE = "Time from a request to the headers of its answer, including the time to connect."
_WHOLE = "Time from a request to the end of its answer."


def _requests(of: HostStatistics) -> Mapping[str, int]:
    return of.requests


def _answers(of: HostStatistics) -> Mapping[str, int]:
    return of.answers


def _sources(of: HostStatistics) -> Mapping[Origin, int]:
    return of.sources


def _failures(of: HostStatistics) -> Mapping[str, int]:
    return of.failures


def _timeouts(of: HostStatistics) -> int:
    return of.failures[TimedOut.__name__]
