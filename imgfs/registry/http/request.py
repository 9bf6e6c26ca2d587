"""One HTTP request as it goes out, and what that makes of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from imgfs.registry.http.outgoing import Outgoing
from imgfs.registry.http.route import Route
from imgfs.registry.statistics import Origin


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, with `body` or `outgoing` or neither. `subject` begins every message."""

    method: str
    url: str
    subject: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    route: Route = field(default_factory=Route)
    body: bytes = field(default=b"", repr=False)
    outgoing: Outgoing | None = field(default=None, repr=False)
    origin: Origin = "registry"
    """Who sends the bytes of the answer."""
    foreign: bool = False
    """Whether the registry redirected here: what is answered is not its word."""
    confidential: bool = False
    """Whether a login is shown, which the answer may echo."""

    @property
    def authority(self) -> str:
        """The host that gets it, as URLs say it."""
        return urlsplit(self.url).netloc
