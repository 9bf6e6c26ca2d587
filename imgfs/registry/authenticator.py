"""From a registry's 401 to a grant: the user's login if there is one, shown to this registry and to the realm it names.

A challenge is only answered when the registry's own origin sent it; what a redirect leads to gets nothing (exchange).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from imgfs.errors import AccessDenied, ImgfsError, RegistryFailed
from imgfs.registry import auth, status
from imgfs.registry.body import drain, read_all
from imgfs.registry.call import Call
from imgfs.registry.challenge import Challenge, bearer, parse_challenges
from imgfs.registry.credentials.authfile import canonical_host
from imgfs.registry.credentials.credential import Credential, Login
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.hosts import hostname, is_loopback

if TYPE_CHECKING:
    from imgfs.registry.answer import Answer

_log = logging.getLogger("imgfs.registry")
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_ANY_ANSWER = frozenset({200, 401, 403, 404})

Fetch = Callable[[Call, Callable[["Answer"], Awaitable[bytes | None]]], Awaitable[bytes | None]]
"""Exchange.fetch, as far as it is needed here."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A challenge that a call met, and the login to answer it with."""

    call: Call
    challenge: Challenge
    login: Login


class Authenticator:
    """What all calls of one Registry show. Without `credentials` access is anonymous, bearer tokens included.

    `plain_http` names the hosts, besides loopback, that may be shown a login without TLS.
    """

    def __init__(
        self, credentials: Credentials | None, plain_http: Collection[str], token_max: int, fetch: Fetch
    ) -> None:
        self._credentials = credentials
        self._plain_http = plain_http
        self._token_max = token_max
        self._fetch = fetch
        self._grants = auth.Grants()
        self._roots: dict[str, tuple[list[Challenge], float]] = {}
        self._successors: dict[tuple[Credential, str], str] = {}
        """Identity tokens that endpoints gave in place of those in files, by login and endpoint."""

    def current(self, call: Call) -> auth.Grant | None:
        """What `call` shows at first; what a token endpoint is shown stands in the call."""
        return call.grant if call.kind == "token" else self._grants.current(call.grant_key)

    async def renewed(self, call: Call, answer: Answer, stale: auth.Grant | None) -> auth.Grant:
        """A grant that answers the challenges of a 401, other than the `stale` one that was refused.

        The files are looked at again for it, and after a refusal the programs too. Raises AccessDenied where nothing
        is left to show, and what asking the token endpoint raises.
        """
        challenges = parse_challenges(answer.header_values("www-authenticate"))
        return await self._grants.fresh(call.grant_key, stale, lambda: self._grant(call, challenges, stale))

    async def changed(self, call: Call, refused: auth.Grant | None) -> bool:
        """Whether the login is another one now than that of the grant that a 403 refused, which then is dropped."""
        if refused is None or self._credentials is None:
            return False
        login = await self._login(call, fresh=True)
        if login.credential == refused.login.credential:
            return False
        self._grants.drop(call.grant_key, refused)
        return True

    async def login_of(self, call: Call, grant: auth.Grant | None) -> Login | None:
        """The login of `grant`, or what there would have been to show; None where nobody looks for any."""
        if grant is not None:
            return grant.login
        return await self._login(call, fresh=False) if self._credentials is not None else None

    async def unasked(self, call: Call) -> auth.Grant | None:
        """A grant for a registry that refused `call`, or denied that there is anything, without asking for a login.

        Where anybody may read some of a registry, it may not ask; but its root does (distribution-spec, "Determining
        Support"). None without a login, and where the root asks for none either.
        """
        if self._credentials is None or (await self._login(call, fresh=False)).credential is None:
            return None
        challenges = await self._root(call)
        if not challenges:
            return None
        return await self._grants.fresh(call.grant_key, None, lambda: self._grant(call, challenges, None))

    async def _root(self, call: Call) -> list[Challenge]:
        """What the root of the registry asks for; remembered for a while, as every absent tag would ask again."""
        where = f"{call.endpoint.base}{call.endpoint.path}/"
        known, until = self._roots.get(where, ([], 0.0))
        if trio.current_time() < until:
            return known
        found = list[Challenge]()

        async def read(answer: Answer) -> None:
            await drain(answer)
            if answer.status == 401 and not answer.request.foreign:
                found.extend(parse_challenges(answer.header_values("www-authenticate")))

        asking = Call("ping", call.endpoint, call.repository, where, call.subject, expects=_ANY_ANSWER)
        with suppress(ImgfsError):
            await self._fetch(asking, read)
            self._roots[where] = found, trio.current_time() + auth.REUSE
        return found

    async def _login(self, call: Call, *, fresh: bool) -> Login:
        authority = call.endpoint.authority
        if self._credentials is None:
            return Login(canonical_host(authority))
        return await self._credentials.find(authority, call.repository, fresh=fresh)

    async def _grant(self, call: Call, challenges: list[Challenge], stale: auth.Grant | None) -> auth.Grant:
        login = await self._login(call, fresh=stale is not None)
        challenge = bearer(challenges)
        ready = auth.without_token(login, challenge, challenges, trio.current_time())
        if ready is not None:
            if stale is not None and ready.header == stale.header:
                raise status.refused(call, f"registry {call.host} answered 401", login, shown=True)
            return ready
        if challenge is None:
            raise unanswerable(call, challenges, login)
        try:
            return await self._token(_Asked(call, challenge, login))
        except AccessDenied:
            again = await self._login(call, fresh=True)
            if again.credential == login.credential:
                raise
            return await self._token(_Asked(call, challenge, again))

    async def _token(self, asked: _Asked) -> auth.Grant:
        credential = asked.login.credential
        if credential is not None:
            self._refuse_plain(asked)
        body = None
        if credential is not None and credential.identity_token:
            body = await self._by_identity(asked, credential)
        if body is None:
            body = await self._by_password(asked)
        endpoint = urlsplit(auth.realm_of(asked.challenge, asked.call.url)).netloc
        what = f"{subject_of(asked.call)}: the token endpoint {endpoint}"
        token = auth.parse_token(body, trio.current_time(), what)
        _log.debug("token", extra={"host": asked.call.host, "scope": asked.call.scope, "login": asked.login.source})
        return auth.Grant(f"Bearer {token.text}", token.until, asked.login)

    def _refuse_plain(self, asked: _Asked) -> None:
        """A login goes to the realm over no worse transport than its registry is spoken to with."""
        realm = auth.realm_of(asked.challenge, asked.call.url)
        name = hostname(realm)
        told = is_loopback(name) or name in self._plain_http or urlsplit(realm).netloc in self._plain_http
        if not (realm.startswith("https:") or told or name == asked.call.endpoint.name):
            raise RegistryFailed(
                f"{subject_of(asked.call)}: registry {asked.call.host} wants the login for it sent to {name} "
                "without TLS; refused, name that host in plain_http if it is meant to get it"
            )

    async def _by_identity(self, asked: _Asked, credential: Credential) -> bytes | None:
        """The answer to a refresh_token grant; None where the endpoint has none and there is a password as well."""
        url = auth.realm_of(asked.challenge, asked.call.url)
        try:
            body = await self._refreshed(asked, url, self._successors.get((credential, url), credential.identity_token))
        except AccessDenied:
            if self._successors.pop((credential, url), None) is None:
                raise
            body = await self._refreshed(asked, url, credential.identity_token)
        if body is not None and (successor := auth.parse_successor(body)):
            self._successors[credential, url] = successor
        if body is None and not credential.has_password:
            raise AccessDenied(
                f"{subject_of(asked.call)}: the token endpoint {urlsplit(url).netloc} takes no identity tokens, and "
                f"there is no password in {asked.login.source}; log in with a user and a password"
            )
        return body

    async def _refreshed(self, asked: _Asked, url: str, identity_token: str) -> bytes | None:
        form = auth.refresh_form(asked.challenge, asked.call.scope, identity_token)
        served = frozenset({200, 404, 405})
        asking = replace(self._asking(asked, url, ""), method="POST", headers=_FORM, body=form, expects=served)
        return await self._fetch(asking, lambda answer: self._read_if_served(answer, asking.subject))

    async def _read_if_served(self, answer: Answer, subject: str) -> bytes | None:
        if answer.status == 200:
            return await read_all(answer, self._token_max, subject)
        await drain(answer)
        return None

    async def _by_password(self, asked: _Asked) -> bytes:
        credential = asked.login.credential
        header = credential.basic() if credential is not None and credential.has_password else ""
        url = auth.token_url(asked.challenge, asked.call.url, asked.call.scope)
        asking = self._asking(asked, url, header)
        body = await self._fetch(asking, lambda answer: read_all(answer, self._token_max, asking.subject))
        assert body is not None
        return body

    def _asking(self, asked: _Asked, url: str, header: str) -> Call:
        grant = auth.Grant(header, math.inf, asked.login)
        call = asked.call
        return Call("token", call.endpoint, call.repository, url, subject_of(call), access=call.access, grant=grant)


def subject_of(call: Call) -> str:
    """What messages about a token for `call` begin with."""
    return f"token for {call.host}/{call.repository or '_catalog'}"


def unanswerable(call: Call, challenges: list[Challenge], login: Login) -> AccessDenied:
    """The error for a 401 whose challenges nothing at hand answers."""
    schemes = ", ".join(sorted({one.scheme for one in challenges}))[:80]
    said = f"registry {call.host} answered 401"
    if not schemes:
        return AccessDenied(f"{call.subject}: {said} without saying how to log in; check that it is a registry")
    if login.credential is not None:
        return AccessDenied(
            f"{call.subject}: {said} and wants {schemes}, for which the login from {login.source} is not enough; "
            f"{login.advice(call.act)}"
        )
    return status.refused(call, f"{said} and wants a login ({schemes})", login, shown=False)
