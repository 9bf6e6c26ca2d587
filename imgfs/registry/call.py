"""One thing to ask of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imgfs.registry.auth.grants import Grant, scope_of
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.http.outgoing import Outgoing


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
    source: str = ""
    """Another repository of this registry that is read from too."""
    grant: Grant | None = None
    """Of a call to a token endpoint: what it shows there. Of others: nothing, the exchange knows what they need."""
    body: bytes = field(default=b"", repr=False)
    outgoing: Outgoing | None = field(default=None, repr=False)
    """What is sent, other than the form that a token endpoint gets in `body`."""
    repeatable: bool = True
    """Whether it does no harm to make the request again where nobody knows if it was done."""

    @property
    def host(self) -> str:
        """The registry, as references name it."""
        return self.endpoint.host

    @property
    def scope(self) -> str:
        """What a token for this call must allow: scopes with a space between them."""
        own = scope_of(self.repository, self.access)
        return f"{own} {scope_of(self.source, 'pull')}" if self.source else own

    @property
    def pushes(self) -> bool:
        """Whether it is a part of a push."""
        return "push" in self.access

    @property
    def act(self) -> str:
        """What a refusal refuses, as messages say it."""
        return "push to it" if self.pushes else "read it"

    @property
    def grant_key(self) -> tuple[str, str, str]:
        """What a grant for this call is kept under: it goes to nobody but this very server."""
        return self.endpoint.scheme, self.endpoint.authority, self.scope
