"""One call to a registry, before it becomes an HTTP request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imgfs.registry.auth.grants import Grant, scope_of
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.http.request import Outgoing


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a registry. `subject` begins every error message; `kind` is a key of the statistics."""

    kind: str
    endpoint: Endpoint
    repository: str
    url: str
    subject: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    expects: frozenset[int] = frozenset({200})
    """The statuses that the caller handles. Any other status is an error."""
    access: str = "pull"
    """The actions that a token must allow. Without a repository they apply to the catalog."""
    source: str = ""
    """Another repository of this registry from which the call reads too (a mount)."""
    grant: Grant | None = None
    """The grant to show to a token endpoint. None for all other calls: the exchange finds their grant."""
    body: bytes = field(default=b"", repr=False)
    outgoing: Outgoing | None = field(default=None, repr=False)
    """The request body, except for the form that goes to a token endpoint in `body`."""
    repeatable: bool = True
    """Whether the request may be repeated if it is unknown whether the registry has executed it."""

    @property
    def host(self) -> str:
        """The registry, as image references name it."""
        return self.endpoint.host

    @property
    def scope(self) -> str:
        """The scopes that a token for this call must allow, separated by spaces."""
        own = scope_of(self.repository, self.access)
        return f"{own} {scope_of(self.source, 'pull')}" if self.source else own

    @property
    def pushes(self) -> bool:
        """Whether the call is part of a push."""
        return "push" in self.access

    @property
    def act(self) -> str:
        """The act that a refusal denies, for messages."""
        return "push to it" if self.pushes else "read it"

    @property
    def grant_key(self) -> tuple[str, str, str]:
        """The key under which a grant for this call is cached. A grant is for one server only."""
        return self.endpoint.scheme, self.endpoint.authority, self.scope
