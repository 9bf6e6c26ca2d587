"""From a registry's 401 to a grant: the user's login if there is one, shown to this registry and to the realm it names.

A challenge is only answered when the registry's own origin sent it; what a redirect leads to gets nothing (exchange).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import trio

from imgfs.errors import AccessDenied, ImgfsError
from imgfs.registry import status
from imgfs.registry.auth import grants
from imgfs.registry.auth.challenge import Challenge, bearer, parse_challenges
from imgfs.registry.auth.tokens import Asked, Fetch, TokenEndpoints
from imgfs.registry.call import Call
from imgfs.registry.credentials.authfile import canonical_host
from imgfs.registry.credentials.credential import Login
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.http.body import drain

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

_ANY_ANSWER = frozenset({200, 401, 403, 404})


class Authenticator:
    """What all calls of one Registry show. Without `credentials` access is anonymous, bearer tokens included.

    `plain_http` names the hosts, besides loopback, that may be shown a login without TLS.
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
        """What `call` shows at first; what a token endpoint is shown stands in the call."""
        return call.grant if call.kind == "token" else self._grants.current(call.grant_key)

    async def renewed(self, call: Call, answer: Answer, stale: grants.Grant | None) -> grants.Grant:
        """A grant that answers the challenges of a 401, other than the `stale` one that was refused.

        The files are looked at again for it, and after a refusal the programs too. Raises AccessDenied where nothing
        is left to show, and what asking the token endpoint raises.
        """
        challenges = parse_challenges(answer.header_values("www-authenticate"))
        return await self._grants.fresh(call.grant_key, stale, lambda: self._grant(call, challenges, stale))

    async def changed(self, call: Call, refused: grants.Grant | None) -> bool:
        """Whether the login is another one now than that of the grant that a 403 refused, which then is dropped."""
        if refused is None or self._credentials is None:
            return False
        login = await self._login(call, fresh=True)
        if login.credential == refused.login.credential:
            return False
        self._grants.drop(call.grant_key, refused)
        return True

    async def login_of(self, call: Call, grant: grants.Grant | None) -> Login | None:
        """The login of `grant`, or what there would have been to show; None where nobody looks for any."""
        if grant is not None:
            return grant.login
        return await self._login(call, fresh=False) if self._credentials is not None else None

    async def unasked(self, call: Call) -> grants.Grant | None:
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
                raise status.refused(call, f"registry {call.host} answered 401", login, shown=True)
            return ready
        if challenge is None:
            raise unanswerable(call, challenges, login)
        try:
            return await self._tokens.grant(Asked(call, challenge, login))
        except AccessDenied:
            again = await self._login(call, fresh=True)
            if again.credential == login.credential:
                raise
            return await self._tokens.grant(Asked(call, challenge, again))


async def _challenges_of(answer: Answer) -> list[Challenge]:
    await drain(answer)
    if answer.status != 401 or answer.request.foreign:
        return []
    return parse_challenges(answer.header_values("www-authenticate"))


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
