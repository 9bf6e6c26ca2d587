"""From the 401 of a registry to a grant: the login of the user, if there is one, and a token for it.

A login is shown to the registry itself and to the realm that the registry names. A challenge is answered only if the
registry's own origin sent it; redirect targets get no login (see `exchange`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

import trio

from imgfs.errors import AccessDenied, ImgfsError, RegistryFailed
from imgfs.registry.auth import grants
from imgfs.registry.auth.grants import Challenge, bearer, parse_challenges
from imgfs.registry.call import Call
from imgfs.registry.credentials.authfile import Credential, Login, canonical_host
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.hosts.endpoint import hostname, is_loopback
from imgfs.registry.http.body import drain, read_all
from imgfs.registry.refusals import refused

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

T = TypeVar("T")

_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_NOT_SERVED = frozenset({404, 405})
"""Statuses of endpoints that do not accept identity tokens."""
_ANY_ANSWER = frozenset({200, 401, 403, 404})
_log = logging.getLogger("imgfs.registry")


class Fetch(Protocol):
    """The part of Exchange.fetch that is needed to get a grant."""

    async def __call__(self, call: Call, read: Callable[[Answer], Awaitable[T]]) -> T: ...


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A Bearer challenge to a call, and the login to answer it with."""

    call: Call
    challenge: Challenge
    login: Login

    @property
    def subject(self) -> str:
        """The beginning of error messages about the token."""
        return f"token for {self.call.host}/{self.call.repository or '_catalog'}"


class TokenEndpoints:
    """Asks the token endpoints that registries name.

    `plain_http` names the hosts, besides loopback, that may get a login without TLS. An answer may have `token_max`
    bytes.
    """

    def __init__(self, plain_http: Collection[str], token_max: int, fetch: Fetch) -> None:
        self._plain_http = plain_http
        self._token_max = token_max
        self._fetch = fetch
        self._successors: dict[tuple[Credential, str], str] = {}
        """Identity tokens by login and endpoint, with which endpoints replaced those of the auth files."""

    async def grant(self, request: TokenRequest) -> grants.Grant:
        """Get a grant with the identity token of the login, or else with its password, or else anonymously.

        Raises AccessDenied if the endpoint refuses, RegistryFailed for a realm that must not get the login, and
        Malformed for an answer without a token.
        """
        credential = request.login.credential
        if credential is not None:
            self._refuse_plain(request)
        body = None
        if credential is not None and credential.identity_token:
            body = await self._by_identity(request, credential)
        if body is None:
            body = await self._by_password(request)
        endpoint = urlsplit(grants.realm_of(request.challenge, request.call.url)).netloc
        what = f"{request.subject}: the token endpoint {endpoint}"
        token = grants.parse_token(body, trio.current_time(), what)
        _log.debug(
            "token", extra={"host": request.call.host, "scope": request.call.scope, "login": request.login.source}
        )
        return grants.Grant(f"Bearer {token.text}", token.until, request.login)

    def _refuse_plain(self, request: TokenRequest) -> None:
        """Raise RegistryFailed if the login would go to the realm over a weaker transport than to its registry."""
        realm = grants.realm_of(request.challenge, request.call.url)
        name = hostname(realm)
        told = is_loopback(name) or name in self._plain_http or urlsplit(realm).netloc in self._plain_http
        if not (realm.startswith("https:") or told or name == request.call.endpoint.name):
            raise RegistryFailed(
                f"{request.subject}: registry {request.call.host} wants the login for it sent to {name} "
                "without TLS; refused, name that host in plain_http if it is meant to get it"
            )

    async def _by_identity(self, request: TokenRequest, credential: Credential) -> bytes | None:
        """Return the answer to a refresh_token grant. None if the endpoint has none and there is a password."""
        url = grants.realm_of(request.challenge, request.call.url)
        try:
            body = await self._refreshed(
                request, url, self._successors.get((credential, url), credential.identity_token)
            )
        except AccessDenied:
            if self._successors.pop((credential, url), None) is None:
                raise
            body = await self._refreshed(request, url, credential.identity_token)
        if body is not None and (successor := grants.parse_successor(body)):
            self._successors[credential, url] = successor
        if body is None and not credential.has_password:
            raise AccessDenied(
                f"{request.subject}: the token endpoint {urlsplit(url).netloc} takes no identity tokens, and "
                f"there is no password in {request.login.source}; log in with a user and a password"
            )
        return body

    async def _refreshed(self, request: TokenRequest, url: str, identity_token: str) -> bytes | None:
        form = grants.refresh_form(request.challenge, request.call.scope, identity_token)
        asking = replace(
            _asking(request, url, ""), method="POST", headers=_FORM, body=form, expects=_NOT_SERVED | {200}
        )
        return await self._fetch(asking, lambda answer: self._read_if_served(answer, asking.subject))

    async def _read_if_served(self, answer: Answer, subject: str) -> bytes | None:
        if answer.status in _NOT_SERVED:
            await drain(answer)
            return None
        return await read_all(answer, self._token_max, subject)

    async def _by_password(self, request: TokenRequest) -> bytes:
        credential = request.login.credential
        header = credential.basic() if credential is not None and credential.has_password else ""
        url = grants.token_url(request.challenge, request.call.url, request.call.scope)
        asking = _asking(request, url, header)
        return await self._fetch(asking, lambda answer: read_all(answer, self._token_max, asking.subject))


def _asking(request: TokenRequest, url: str, header: str) -> Call:
    """Return the call to the token endpoint at `url` with the Authorization `header`."""
    call, grant = request.call, grants.Grant(header, math.inf, request.login)
    return Call("token", call.endpoint, call.repository, url, request.subject, access=call.access, grant=grant)


class Authenticator:
    """Finds the grants for all calls of one Registry. Without `credentials` access is anonymous, also with tokens.

    `plain_http` names the hosts, besides loopback, that may get a login without TLS.
    """

    def __init__(
        self, credentials: Credentials | None, plain_http: Collection[str], token_max: int, fetch: Fetch
    ) -> None:
        self._credentials = credentials
        self._fetch = fetch
        self._tokens = TokenEndpoints(plain_http, token_max, fetch)
        self._grants = grants.Grants()
        self._roots: dict[str, tuple[list[Challenge], float]] = {}

    def current(self, call: Call) -> grants.Grant | None:
        """Return the cached grant for `call`. A call to a token endpoint contains its grant."""
        return call.grant if call.kind == "token" else self._grants.current(call.grant_key)

    async def renewed(self, call: Call, answer: Answer, stale: grants.Grant | None) -> grants.Grant:
        """Return a grant that answers the challenges of a 401, other than `stale`, which was refused.

        Reads changed auth files again and, after a refusal, asks the credential helpers again. Raises AccessDenied if
        there is nothing else to show, and what the request to the token endpoint raises.
        """
        challenges = parse_challenges(answer.header_values("www-authenticate"))
        return await self._grants.fresh(call.grant_key, stale, lambda: self._grant(call, challenges, stale))

    async def changed(self, call: Call, refused: grants.Grant | None) -> bool:
        """Whether the login has changed since the grant that a 403 refused. If so, that grant is dropped."""
        if refused is None or self._credentials is None:
            return False
        login = await self._login(call, fresh=True)
        if login.credential == refused.login.credential:
            return False
        self._grants.drop(call.grant_key, refused)
        return True

    async def login_of(self, call: Call, grant: grants.Grant | None) -> Login | None:
        """Return the login of `grant`, or else the available login, or None if the client has no credentials."""
        if grant is not None:
            return grant.login
        return await self._login(call, fresh=False) if self._credentials is not None else None

    async def unasked(self, call: Call) -> grants.Grant | None:
        """Return a grant for a registry that answered 403 or 404 to `call` without asking for a login.

        A registry with public repositories may not ask for a login, but its root does (distribution-spec, "Determining
        Support"). Returns None without a login, and if the root does not ask for one either.
        """
        if self._credentials is None or (await self._login(call, fresh=False)).credential is None:
            return None
        challenges = await self._root(call)
        if not challenges:
            return None
        return await self._grants.fresh(call.grant_key, None, lambda: self._grant(call, challenges, None))

    async def _root(self, call: Call) -> list[Challenge]:
        """Return the challenges of the registry's root. They are cached, because each absent tag needs them."""
        where = f"{call.endpoint.base}{call.endpoint.path}/"
        known, until = self._roots.get(where, ([], 0.0))
        if trio.current_time() < until:
            return known
        asking = Call("ping", call.endpoint, call.repository, where, call.subject, expects=_ANY_ANSWER)
        try:
            found = await self._fetch(asking, _challenges_of)
        except ImgfsError:
            return []
        self._roots[where] = found, trio.current_time() + grants.REUSE
        return found

    async def _login(self, call: Call, *, fresh: bool) -> Login:
        authority = call.endpoint.authority
        if self._credentials is None:
            return Login(canonical_host(authority))
        return await self._credentials.find(authority, call.repository, fresh=fresh)

    async def _grant(self, call: Call, challenges: list[Challenge], stale: grants.Grant | None) -> grants.Grant:
        login = await self._login(call, fresh=stale is not None)
        challenge = bearer(challenges)
        ready = grants.without_token(login, challenge, challenges, trio.current_time())
        if ready is not None:
            if stale is not None and ready.header == stale.header:
                raise refused(call, f"registry {call.host} answered 401", login, shown=True)
            return ready
        if challenge is None:
            raise unanswerable(call, challenges, login)
        try:
            return await self._tokens.grant(TokenRequest(call, challenge, login))
        except AccessDenied:
            again = await self._login(call, fresh=True)
            if again.credential == login.credential:
                raise
            return await self._tokens.grant(TokenRequest(call, challenge, again))


async def _challenges_of(answer: Answer) -> list[Challenge]:
    await drain(answer)
    if answer.status != 401 or answer.request.foreign:
        return []
    return parse_challenges(answer.header_values("www-authenticate"))


def unanswerable(call: Call, challenges: list[Challenge], login: Login) -> AccessDenied:
    """Return the error for a 401 whose challenges the client cannot answer."""
    schemes = ", ".join(sorted({one.scheme for one in challenges}))[:80]
    said = f"registry {call.host} answered 401"
    if not schemes:
        return AccessDenied(f"{call.subject}: {said} without saying how to log in; check that it is a registry")
    if login.credential is not None:
        return AccessDenied(
            f"{call.subject}: {said} and wants {schemes}, for which the login from {login.source} is not enough; "
            f"{login.advice(call.act)}"
        )
    return refused(call, f"{said} and wants a login ({schemes})", login, shown=False)
