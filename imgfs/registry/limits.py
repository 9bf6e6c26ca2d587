"""All limits of the registry client: times, counts and sizes."""

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
    """Failed attempts in a row without progress."""
    connect: float = 10.0
    silence: float = 30.0
    """Longest wait for a byte, the first or a later one."""
    slow_window: float = 60.0
    slow_rate: int = 1000
    """Less than this over a whole `slow_window` of waiting is a stall."""
    patience: float = 75.0
    """Seconds without progress (see `retry`) after which no further try starts."""
    gain_rate: int = 64 << 10
    """Bytes of a blob that make up for one second without progress."""
    pause: float = 60.0
    """The longest Retry-After that is obeyed, and the total rest of one call."""
    requests: int = 10
    """Limit for the requests of one call to a host that answers each with Retry-After (429, 503)."""
    backoff: float = 0.25
    """The first pause between attempts. It doubles with each failure, and is varied by up to half at random."""
    pages: int = 100
    """Pages of one list (tags, repositories or referrers)."""
    listing: int = 16 << 20
    """Bytes of all pages of a list."""
    crumb: int = 1024
    crumbs: int = 32
    """A body that breaks after fewer bytes than `crumb` counts as progress, but only this many times in one stream."""
    streams: int = 8
    """Open blob streams from one registry."""
    spare_streams: int = 2
    """Additional streams for repositories that have none, so that a large image does not delay other images."""
    short: int = 1 << 20
    """Size up to which a stream is short: on a link with high latency, most of its time is the round trip."""
    short_streams: int = 32
    """Open short streams, in addition to the other streams."""
    spare_short_streams: int = 8
    """As `spare_streams`, for short streams."""
    uploads: int = 4
    """Concurrent uploads of blobs to one registry."""
    taking: float = 75.0
    """Longest wait for the answer to an upload. The registry first hashes the data, and may move it."""
    chunk: int = 32 << 20
    """Size of the largest blob that is sent in one request, and of the parts of larger blobs."""
    discard: int = 8 << 20
    """Bytes that may be discarded if a registry answers a Range with the whole blob. Half of the blob may always be."""
    keep_alive: float = 30.0
    """How long an idle connection stays open."""

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
        """The largest number of blob streams from one registry, which is the number of connections to keep."""
        return self.streams + self.spare_streams + self.short_streams + self.spare_short_streams
