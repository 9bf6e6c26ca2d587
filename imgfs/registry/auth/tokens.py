"""Asking token endpoints: from a challenge and a login to a grant (distribution, "Token Authentication", and OAuth2).

Owns what is shown to an endpoint, and the identity tokens that one gives in place of others. What requests and answers
look like is in auth; which login and which challenge, the authenticator's business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

import trio

from imgfs.errors import AccessDenied, RegistryFailed
from imgfs.registry.auth import grants
from imgfs.registry.auth.challenge import Challenge
from imgfs.registry.call import Call
from imgfs.registry.credentials.credential import Credential, Login
from imgfs.registry.hosts.endpoint import hostname, is_loopback
from imgfs.registry.http.body import drain, read_all

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

T = TypeVar("T")

_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_NOT_SERVED = frozenset({404, 405})
"""What endpoints answer that give no tokens for identity tokens."""
_log = logging.getLogger("imgfs.registry")


class Fetch(Protocol):
    """Exchange.fetch, as far as it is needed to get a grant."""

    async def __call__(self, call: Call, read: Callable[[Answer], Awaitable[T]]) -> T: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A Bearer challenge that a call met, and the login to answer it with."""

    call: Call
    challenge: Challenge
    login: Login

    @property
    def subject(self) -> str:
        """What messages about the token begin with."""
        return f"token for {self.call.host}/{self.call.repository or '_catalog'}"


class TokenEndpoints:
    """Every endpoint that registries name.

    `plain_http` names the hosts, besides loopback, that may see a login without TLS; an answer has `token_max` bytes
    at most.
    """

    def __init__(self, plain_http: Collection[str], token_max: int, fetch: Fetch) -> None:
        self._plain_http = plain_http
        self._token_max = token_max
        self._fetch = fetch
        self._successors: dict[tuple[Credential, str], str] = {}
        """Identity tokens that endpoints gave in place of those in files, by login and endpoint."""

    async def grant(self, asked: Asked) -> grants.Grant:
        """The grant that answers a challenge, by the identity token of its login, else by its password, or anonymous.

        Raises AccessDenied where the endpoint denies it, RegistryFailed for a realm that must not see the login, and
        Malformed for an answer without a token.
        """
        credential = asked.login.credential
        if credential is not None:
            self._refuse_plain(asked)
        body = None
        if credential is not None and credential.identity_token:
            body = await self._by_identity(asked, credential)
        if body is None:
            body = await self._by_password(asked)
        endpoint = urlsplit(grants.realm_of(asked.challenge, asked.call.url)).netloc
        what = f"{asked.subject}: the token endpoint {endpoint}"
        token = grants.parse_token(body, trio.current_time(), what)
        _log.debug("token", extra={"host": asked.call.host, "scope": asked.call.scope, "login": asked.login.source})
        return grants.Grant(f"Bearer {token.text}", token.until, asked.login)

    def _refuse_plain(self, asked: Asked) -> None:
        """A login goes to the realm over no worse transport than its registry is spoken to with."""
        realm = grants.realm_of(asked.challenge, asked.call.url)
        name = hostname(realm)
        told = is_loopback(name) or name in self._plain_http or urlsplit(realm).netloc in self._plain_http
        if not (realm.startswith("https:") or told or name == asked.call.endpoint.name):
            raise RegistryFailed(
                f"{asked.subject}: registry {asked.call.host} wants the login for it sent to {name} "
                "without TLS; refused, name that host in plain_http if it is meant to get it"
            )

    async def _by_identity(self, asked: Asked, credential: Credential) -> bytes | None:
        """The answer to a refresh_token grant; None where the endpoint has none and there is a password as well."""
        url = grants.realm_of(asked.challenge, asked.call.url)
        try:
            body = await self._refreshed(asked, url, self._successors.get((credential, url), credential.identity_token))
        except AccessDenied:
            if self._successors.pop((credential, url), None) is None:
                raise
            body = await self._refreshed(asked, url, credential.identity_token)
        if body is not None and (successor := grants.parse_successor(body)):
            self._successors[credential, url] = successor
        if body is None and not credential.has_password:
            raise AccessDenied(
                f"{asked.subject}: the token endpoint {urlsplit(url).netloc} takes no identity tokens, and "
                f"there is no password in {asked.login.source}; log in with a user and a password"
            )
        return body

    async def _refreshed(self, asked: Asked, url: str, identity_token: str) -> bytes | None:
        form = grants.refresh_form(asked.challenge, asked.call.scope, identity_token)
        asking = replace(_asking(asked, url, ""), method="POST", headers=_FORM, body=form, expects=_NOT_SERVED | {200})
        return await self._fetch(asking, lambda answer: self._read_if_served(answer, asking.subject))

    async def _read_if_served(self, answer: Answer, subject: str) -> bytes | None:
        if answer.status in _NOT_SERVED:
            await drain(answer)
            return None
        return await read_all(answer, self._token_max, subject)

    async def _by_password(self, asked: Asked) -> bytes:
        credential = asked.login.credential
        header = credential.basic() if credential is not None and credential.has_password else ""
        url = grants.token_url(asked.challenge, asked.call.url, asked.call.scope)
        asking = _asking(asked, url, header)
        return await self._fetch(asking, lambda answer: read_all(answer, self._token_max, asking.subject))


def _asking(asked: Asked, url: str, header: str) -> Call:
    """What asks the token endpoint at `url`, and shows it `header`."""
    call, grant = asked.call, grants.Grant(header, math.inf, asked.login)
    return Call("token", call.endpoint, call.repository, url, asked.subject, access=call.access, grant=grant)
