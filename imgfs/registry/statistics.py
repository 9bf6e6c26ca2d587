"""Plain counters per registry: what was asked, answered and received, how long that took, and what was asked again."""

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
"""What sent bytes: the registry itself, a host in its place, or where one of them redirected to."""


@dataclass(slots=True)
class HostStatistics:
    """Counters of one registry, or of a host in its place, redirect targets and token endpoint included.

    `requests` counts requests sent by kind: `manifest`, `tag` (HEAD), `blob`, `token`, `ping` (`/v2/`), `tags`,
    `catalog` and `referrers` (each page), `redirect` (every further hop); of pushes `exists` (HEAD), `mount`, `upload`
    (each request of one) and `push` (a manifest). `failures` counts what went wrong by class of
    error, whether another try or another host mended it or not; that something is not there is no failure.
    """

    requests: Counter[str] = field(default_factory=Counter[str])
    answers: Counter[str] = field(default_factory=Counter[str])
    """By class of status: `2xx`."""
    throttled: int = 0
    """Answers with 429."""
    inflight: int = 0
    """Requests whose answer is not read to its end yet."""
    received: int = 0
    """Bytes of bodies."""
    sources: Counter[Origin] = field(default_factory=Counter[Origin])
    """The same, by who sent them."""
    retries: int = 0
    pauses: int = 0
    """How often the registry asked to be left alone for a while (429, 503)."""
    failures: Counter[str] = field(default_factory=Counter[str])
    sent: int = 0
    """Bytes of blobs and manifests sent, those that had to be sent again included."""
    first_byte: Histogram = field(default_factory=Histogram)
    """Seconds from a request to the headers of its answer, a new connection included."""
    whole: Histogram = field(default_factory=Histogram)
    """Seconds from a request to the end of its answer, or to where it was left."""

    @contextmanager
    def sending(self) -> Generator[None]:
        """A request is under way, until no answer comes, or the one that comes is closed."""
        self.inflight += 1
        try:
            yield
        except BaseException:
            self.inflight -= 1
            raise

    def failed(self, error: ImgfsError) -> None:
        """Count a failure, and log nothing."""
        if not isinstance(error, NotFound):
            self.failures[type(error).__name__] += 1

    def answered(self, status: int) -> None:
        """Count an answer."""
        self.answers[f"{status // 100}xx"] += 1
        self.throttled += status == 429

    def copy(self) -> HostStatistics:
        """A copy that stays as it is."""
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
    """The counters of each host, made at the first look, and of HOSTS_MAX hosts at most: what users look up is endless.

    What is beyond is counted together, as OTHERS.
    """

    def __missing__(self, host: str) -> HostStatistics:
        kept = host if len(self) < HOSTS_MAX else OTHERS
        return self.setdefault(kept, HostStatistics())


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of all counters, keyed by the registry's host as references name it."""

    hosts: dict[str, HostStatistics]

    def families(self) -> list[Family]:
        """What metrics tell of registries."""
        one, host = self._one, ("host",)
        return [
            counter("imgfs_registry_requests_total", "Requests sent.", ("host", "kind"), self._each(_requests)),
            counter("imgfs_registry_answers_total", "Answers by status.", ("host", "class"), self._each(_answers)),
            counter("imgfs_registry_throttled_total", "Answers 429.", host, one(lambda of: of.throttled)),
            counter("imgfs_registry_failures_total", "What went wrong.", ("host", "error"), self._each(_failures)),
            counter("imgfs_registry_timeouts_total", "Failures by time.", host, one(_timeouts)),
            counter("imgfs_registry_retries_total", "Tries after a failure.", host, one(lambda of: of.retries)),
            counter("imgfs_registry_pauses_total", "Times it asked for rest.", host, one(lambda of: of.pauses)),
            counter("imgfs_registry_received_bytes_total", "Bytes of bodies.", host, one(lambda of: of.received)),
            counter("imgfs_registry_sent_bytes_total", "Bytes of bodies sent.", host, one(lambda of: of.sent)),
            counter("imgfs_registry_source_bytes_total", _SOURCES, ("host", "source"), self._each(_sources)),
            gauge("imgfs_registry_inflight", "Requests under way.", host, one(lambda of: of.inflight)),
            histogram(
                "imgfs_registry_first_byte_seconds", _FIRST_BYTE, host, self._histograms(lambda of: of.first_byte)
            ),
            histogram("imgfs_registry_request_seconds", _WHOLE, host, self._histograms(lambda of: of.whole)),
        ]

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

    def _one(self, figure: Callable[[HostStatistics], float]) -> dict[tuple[str, ...], float]:
        return {(name,): figure(one) for name, one in self.hosts.items()}

    def _each(
        self, figures: Callable[[HostStatistics], Mapping[str, int] | Mapping[Origin, int]]
    ) -> dict[tuple[str, ...], float]:
        return {(name, what): count for name, one in self.hosts.items() for what, count in figures(one).items()}

    def _histograms(self, which: Callable[[HostStatistics], Histogram]) -> dict[tuple[str, ...], Histogram]:
        return {(name,): which(one) for name, one in self.hosts.items()}


_SOURCES = "Bytes of bodies by what sent them: the registry, a mirror, or storage that one of them redirected to."
_FIRST_BYTE = "From a request to the headers of its answer, with the connection if it was a new one."
_WHOLE = "From a request to the end of its answer."


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
