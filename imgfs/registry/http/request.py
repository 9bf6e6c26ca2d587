"""One HTTP request: its way to the host (Route), its body (Outgoing), and everything else of it (Request)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from imgfs.registry.http.resolver import Reach
from imgfs.registry.http.trust import SYSTEM, Trust
from imgfs.registry.statistics import Origin


@dataclass(frozen=True, slots=True)
class Route:
    """How to connect to one host: certificates, proxy, and time limit.

    `permitted` are the inner networks that the host may be in; None for all.
    """

    permitted: Reach | None = None
    trust: Trust = SYSTEM
    proxy: str = field(default="", repr=False)
    """The proxy to use instead of that of the environment; "" for the latter."""
    connect: float | None = None
    """Limit in seconds for making a connection; None for the general limit."""


OCTETS = "application/octet-stream"


class SinglePiece(AsyncIterator[bytes]):
    """An iterator over bytes in memory, as one piece."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    async def __anext__(self) -> bytes:
        data, self._left = self._left, b""
        if not data:
            raise StopAsyncIteration
        return data


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The body of a request. `pieces` returns a new iterator over exactly `length` bytes, which need not be closed."""

    length: int
    pieces: Callable[[], AsyncIterator[bytes]]
    media_type: str = OCTETS

    @classmethod
    def of(cls, data: bytes, media_type: str = OCTETS) -> Outgoing:
        """Return a body of bytes in memory."""
        return cls(len(data), lambda: SinglePiece(data), media_type)

    @property
    def headers(self) -> dict[str, str]:
        """The request headers that describe the body."""
        return {"content-length": str(self.length), "content-type": self.media_type}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, with `body`, `outgoing` or neither. `subject` begins every error message."""

    method: str
    url: str
    subject: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    route: Route = field(default_factory=Route)
    body: bytes = field(default=b"", repr=False)
    outgoing: Outgoing | None = field(default=None, repr=False)
    origin: Origin = "registry"
    """The kind of host that sends the answer, for the statistics."""
    foreign: bool = False
    """Whether the registry redirected to another origin, so that the answer is not the registry's own."""
    confidential: bool = False
    """Whether the request contains a login, which the answer may echo."""

    @property
    def authority(self) -> str:
        """The host that gets the request, as in the URL."""
        return urlsplit(self.url).netloc
