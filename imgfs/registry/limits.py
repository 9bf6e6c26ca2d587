"""How long, how often and how much: every bound of the registry client in one value."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.oci.manifest import MANIFEST_SIZE_MAX


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one Registry. Seconds, bytes, bytes a second; the defaults are those of SEMANTICS.md."""

    manifest: int = MANIFEST_SIZE_MAX
    token: int = 1 << 20
    headers: int = 64 << 10
    redirects: int = 5
    tries: int = 3
    """Attempts in a row without progress."""
    connect: float = 10.0
    silence: float = 30.0
    """Without a byte, first or later."""
    slow_window: float = 60.0
    slow_rate: int = 1000
    """Less than this over a whole `slow_window` of waiting is a stall."""
    patience: float = 75.0
    """Seconds without progress (see `retry`) after which no further try starts."""
    gain_rate: int = 64 << 10
    """Bytes of a blob that make up for one second without progress."""
    pause: float = 60.0
    """The longest Retry-After that is obeyed; one call waits no longer in all."""
    requests: int = 10
    """Requests of one call to one host that asks for rest (429, 503) again and again."""
    backoff: float = 0.25
    """The first pause between tries; it doubles, and is scattered by half around that."""
    pages: int = 100
    """Of one list: tags, repositories, referrers."""
    listing: int = 16 << 20
    """Bytes of all pages of a list."""
    crumb: int = 1024
    crumbs: int = 32
    """Fewer bytes than `crumb` before a body breaks are progress this many times a stream, and then no more."""
    streams: int = 8
    """Blob streams to one registry at a time."""
    spare_streams: int = 2
    """Further ones for repositories that have none, so that a large image does not keep others waiting."""
    short: int = 1 << 20
    """Bytes of a stream that is short: on a far link most of its time is the way there and back."""
    short_streams: int = 32
    """Short ones at a time, beside the others."""
    spare_short_streams: int = 8
    """As `spare_streams`."""
    uploads: int = 4
    """Blobs on their way to one registry at a time."""
    taking: float = 75.0
    """Until a registry answers that it has taken what was sent: it hashes that first, and may move it."""
    chunk: int = 32 << 20
    """Bytes of the largest blob that is sent in one request, and of each request of a larger one."""
    discard: int = 8 << 20
    """Bytes a full answer to a Range may waste, whatever the blob's size; half of the blob is always allowed."""
    keep_alive: float = 30.0
    """How long an idle connection is kept."""

    @property
    def call(self) -> float:
        """Seconds without progress after which a request is given up, even one that is on its way."""
        return self.patience + self.connect + self.silence

    @property
    def gain_whole(self) -> float:
        """Seconds without progress that a complete document, page or blob range makes up for."""
        return self.call / 23

    @property
    def connections(self) -> int:
        """As many as there may be streams of blobs to one registry."""
        return self.streams + self.spare_streams + self.short_streams + self.spare_short_streams
