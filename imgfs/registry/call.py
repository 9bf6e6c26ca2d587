"""One thing to ask of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imgfs.registry.auth import Grant, scope_of
from imgfs.registry.hosts import Endpoint


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to ask of a registry. `subject` begins every message; `kind` is a key of the statistics."""

    kind: str
    endpoint: Endpoint
    repository: str
    url: str
    subject: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    expects: frozenset[int] = frozenset({200})
    """The statuses that are the caller's to judge; any other is an error."""
    access: str = "pull"
    """The actions of the scope: what a token must allow. Without a repository it is the catalogue's."""
    grant: Grant | None = None
    """Of a call to a token endpoint: what it shows there. Of others: nothing, the exchange knows what they need."""
    body: bytes = field(default=b"", repr=False)

    @property
    def host(self) -> str:
        """The registry, as references name it."""
        return self.endpoint.host

    @property
    def scope(self) -> str:
        """What a token for this call must allow."""
        return scope_of(self.repository, self.access)

    @property
    def grant_key(self) -> tuple[str, str, str]:
        """What a grant for this call is kept under: it goes to nobody but this very server."""
        return self.endpoint.scheme, self.endpoint.authority, self.scope
