"""Records of running transfers in both directions, and counters of all transfers.

`.imgfs/transfers/`, status files and metrics read them. The code that moves bytes only reports each piece here.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from imgfs.errors import ImgfsError
from imgfs.metrics.family import Family, counter, gauge
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source

Direction = Literal["pull", "push"]
Kind = Literal["blob", "layer"]
Clock = Callable[[], float]
"""A monotonic clock, in seconds."""

WINDOW = 5.0
"""Seconds over which a rate is computed."""
_DIRECTIONS: tuple[Direction, ...] = ("pull", "push")
_KINDS: tuple[Kind, ...] = ("blob", "layer")
_OUTCOMES = ("hit", "miss", "shared")
_ASKED_HELP = "Requested blobs and layers: stored here (hit), not stored (miss), in flight already (shared)."
_SPACING = 0.5
"""Seconds between two marks. It bounds the number of marks of a transfer to a dozen, whatever its speed."""


class Pace:
    """Computes bytes per second over the last WINDOW seconds."""

    __slots__ = ("_clock", "_marks")

    def __init__(self, clock: Clock, offset: int) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), offset)])

    def moved(self, before: int, after: int) -> None:
        """Record that the offset changed from `before` to `after` now."""
        now = self._clock()
        since = now - self._marks[-1][0]
        if since > WINDOW:  # the transfer was stalled; the stall is not part of its present rate
            self._marks.clear()
            self._marks.append((now - WINDOW, before))
        if since >= _SPACING:
            self._marks.append((now, after))
            self._forget(now)

    def rate(self, offset: int) -> float:
        """Return bytes per second with the present `offset`; 0 before any time has passed."""
        now = self._clock()
        self._forget(now)
        since, before = self._marks[0]
        return (offset - before) / (now - since) if now > since else 0.0

    def _forget(self, now: float) -> None:
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW:
            self._marks.popleft()


class Transfer:
    """A running transfer: `offset` of `total` bytes have arrived since `started` (seconds since the epoch).

    `name` is unique among the running transfers. `attempts` includes the first one; `error` is the message of the last
    failure. Only one task at a time may report to a transfer.
    """

    __slots__ = (
        "_clock",
        "_counts",
        "_pace",
        "attempts",
        "digest",
        "direction",
        "error",
        "host",
        "name",
        "offset",
        "ref",
        "repository",
        "serial",
        "started",
        "total",
    )

    def __init__(
        self,
        transfers: Transfers,
        name: str,
        direction: Direction,
        digest: Digest,
        total: int,
        place: Source,
        ref: str,
    ) -> None:
        self._clock = transfers.clock
        self._counts = transfers.moved
        self._pace = Pace(self._clock, 0)
        self.name = name
        self.serial = transfers.begun
        self.direction: Direction = direction
        self.digest = digest
        self.total = total
        self.host = place.host
        self.repository = place.repository
        self.ref = ref
        self.offset = 0
        self.started = transfers.now()
        self.attempts = 1
        self.error: str | None = None

    @property
    def place(self) -> str:
        """The source or target: `<host>/<repository>`."""
        return f"{self.host}/{self.repository}" if self.repository else self.host

    def goes_to(self, place: Source) -> bool:
        """Return whether this is a push to that repository."""
        return self.direction == "push" and (self.host, self.repository) == (place.host, place.repository)

    @property
    def rate(self) -> float:
        """Bytes per second over the last WINDOW seconds."""
        return self._pace.rate(self.offset)

    @property
    def eta(self) -> float | None:
        """Seconds until the end at the present rate; None if the transfer is stalled."""
        rate = self.rate
        return max(0, self.total - self.offset) / rate if rate > 0 else None

    def advance(self, count: int) -> None:
        """Report `count` more bytes."""
        before = self.offset
        self.offset += count
        self._counts[self.direction] += count
        self._pace.moved(before, self.offset)

    def at(self, offset: int) -> None:
        """Report that the transfer continues at `offset`. No bytes are counted for the change."""
        if offset != self.offset:
            self.offset = offset
            self._pace = Pace(self._clock, offset)

    def failed(self, error: ImgfsError) -> None:
        """Report that an attempt failed and another one begins."""
        self.attempts += 1
        self.error = error.message


class Transfers:
    """All running transfers, and counters of all transfers. For use in one event loop."""

    def __init__(self, clock: Clock = time.monotonic, epoch: float | None = None) -> None:
        """`epoch` is the time (seconds since 1970) at which `clock` was 0. By default it is computed."""
        self.clock = clock
        self._epoch = time.time() - clock() if epoch is None else epoch
        self._running: dict[str, Transfer] = {}
        self._pulls: dict[Digest, Transfer] = {}
        self.begun = 0
        self.moved: Counter[Direction] = Counter()
        """Transferred bytes, including those of broken transfers."""
        self.completed: Counter[Direction] = Counter()
        self.broken: Counter[Direction] = Counter()
        self._asked: Counter[tuple[Kind, str]] = Counter()
        self._local: Counter[Kind] = Counter()

    def __iter__(self) -> Iterator[Transfer]:
        return iter(list(self._running.values()))

    def __len__(self) -> int:
        return len(self._running)

    def now(self) -> float:
        """Return seconds since the epoch, by the clock of the rates."""
        return self._epoch + self.clock()

    def get(self, digest: Digest) -> Transfer | None:
        """Return the running pull of `digest`, or None."""
        return self._pulls.get(digest)

    def named(self, name: str) -> Transfer | None:
        """Return the running transfer of that name, or None."""
        return self._running.get(name)

    @contextmanager
    def begin(
        self, *, direction: Direction, digest: Digest, total: int, place: Source, ref: str = ""
    ) -> Generator[Transfer]:
        """Register a transfer of `total` bytes from or to `place` for the duration of the context.

        `ref` is the ingest that receives the bytes. A context that ends with an exception counts as a broken transfer.
        """
        self.begun += 1
        name = self._free_name(f"{direction}-{digest}")
        one = Transfer(self, name, direction, digest, total, place, ref)
        self._running[name] = one
        if direction == "pull":
            self._pulls[digest] = one
        outcomes = self.broken
        try:
            yield one
            outcomes = self.completed
        finally:
            outcomes[direction] += 1
            del self._running[name]
            if self._pulls.get(digest) is one:
                del self._pulls[digest]

    def pull(self, blob: Descriptor, source: Source, ref: str) -> AbstractContextManager[Transfer]:
        """Register a transfer of a blob from `source`, as `begin` does."""
        return self.begin(direction="pull", digest=blob.digest, total=blob.size, place=source, ref=ref)

    def hit(self, kind: Kind, size: int) -> None:
        """Count a request for a stored object of `size` compressed bytes."""
        self._asked[kind, "hit"] += 1
        self._local[kind] += size

    def missed(self, kind: Kind, *, shared: bool) -> None:
        """Count a request for an object that is not stored; `shared` if a fetch of it was in flight already."""
        self._asked[kind, "shared" if shared else "miss"] += 1

    def families(self) -> list[Family]:
        """Return the metrics of transfers."""
        running: Counter[Direction] = Counter(one.direction for one in self._running.values())
        way = ("direction",)
        asked = {(kind, outcome): self._asked[kind, outcome] for kind in _KINDS for outcome in _OUTCOMES}
        local = {(kind,): self._local[kind] for kind in _KINDS}
        return [
            gauge("imgfs_transfers_running", "Transfers in flight.", way, _by_direction(running)),
            counter("imgfs_transfers_completed_total", "Transfers that completed.", way, _by_direction(self.completed)),
            counter(
                "imgfs_transfers_broken_total",
                "Transfers that failed or were cancelled.",
                way,
                _by_direction(self.broken),
            ),
            counter(
                "imgfs_transfers_bytes_total", "Bytes of blobs that were transferred.", way, _by_direction(self.moved)
            ),
            counter("imgfs_content_asked_total", _ASKED_HELP, ("kind", "outcome"), asked),
            counter(
                "imgfs_content_local_bytes_total",
                "Compressed bytes of requested objects that were stored here.",
                ("kind",),
                local,
            ),
        ]

    def _free_name(self, wanted: str) -> str:
        """Return `wanted`, with a number appended if it is taken.

        The same blob can be pushed to two registries at once.
        """
        name, number = wanted, 1
        while name in self._running:
            number += 1
            name = f"{wanted}.{number}"
        return name


def _by_direction(counts: Counter[Direction]) -> dict[tuple[str, ...], float]:
    return {(direction,): counts[direction] for direction in _DIRECTIONS}
