"""What requests are allowed by: Basic, and bearer tokens (distribution, "Token Authentication" and its OAuth2 part).

Asked for once, kept until shortly before they expire. Asking for one is tokens' business.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlencode

import msgspec
import trio

from imgfs.errors import ImgfsError, Malformed
from imgfs.oci.manifest import decode_json
from imgfs.registry.auth.challenge import Challenge
from imgfs.registry.credentials.credential import Login
from imgfs.registry.hosts.endpoint import check_url

LIFETIME = 60.0
"""Of a token that does not say (distribution-spec)."""
LIFETIME_MAX = 24 * 3600.0
MARGIN_MAX = 30.0
REUSE = 300.0
"""How long what never expires is offered before the files are looked at again."""
GRANTS_MAX = 4096
"""Kept at a time: there is one a repository, and which ones are asked for is anybody's choice who may look up names."""
CLIENT = "imgfs"
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}\Z")


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the time (trio's clock) at which it is no longer offered."""

    text: str = field(repr=False)
    until: float


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request shows: the value of its Authorization header ("": none), until when, and whose login it is."""

    header: str = field(repr=False)
    until: float
    login: Login


@dataclass(slots=True)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    grant: Grant | None = None
    error: ImgfsError | None = None


class Grants:
    """The grants of one daemon by key (registry and scope). Many askers of one key make one request."""

    def __init__(self) -> None:
        self._grants: dict[Hashable, Grant] = {}
        self._flights: dict[Hashable, _Flight] = {}

    def current(self, key: Hashable) -> Grant | None:
        """The grant for `key`, if there is one that is not about to expire."""
        grant = self._grants.get(key)
        return grant if grant is not None and trio.current_time() < grant.until else None

    def drop(self, key: Hashable, grant: Grant) -> None:
        """Offer `grant` no more."""
        if self._grants.get(key) is grant:
            del self._grants[key]

    async def fresh(self, key: Hashable, stale: Grant | None, fetch: Callable[[], Awaitable[Grant]]) -> Grant:
        """A grant for `key` that is not `stale`, the refused one.

        All who wait share one `fetch` and its error. A cancelled one is done again by one of the others.
        """
        while True:
            grant = self.current(key)
            if grant is not None and grant is not stale:
                return grant
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, fetch)
            await flight.done.wait()
            if flight.error is not None:
                raise copy.copy(flight.error)
            if flight.grant is not None:
                return flight.grant

    async def _lead(self, key: Hashable, fetch: Callable[[], Awaitable[Grant]]) -> Grant:
        flight = self._flights[key] = _Flight()
        try:
            flight.grant = await fetch()
            self._keep(key, flight.grant)
        except ImgfsError as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.done.set()
        return flight.grant

    def _keep(self, key: Hashable, grant: Grant) -> None:
        """Of too many those go that have expired, and if need be the oldest; who needs one asks for it again."""
        if len(self._grants) >= GRANTS_MAX:
            now = trio.current_time()
            valid = [(known, one) for known, one in self._grants.items() if now < one.until]
            self._grants = dict(valid[-GRANTS_MAX // 2 :])
        self._grants.pop(key, None)
        self._grants[key] = grant


def scope_of(repository: str, access: str) -> str:
    """The scope that `access` (`pull`, or `pull,push`) to `repository` needs; without one, that of the catalogue."""
    if not repository:
        return f"registry:catalog:{access}"
    return f"repository:{repository}:{access}"


def token_url(challenge: Challenge, asked: str, scope: str) -> str:
    """The URL that answers `challenge`, met at the URL `asked`; raises RegistryFailed for a realm not to be trusted.

    The scope is the caller's own, never the challenge's: a registry cannot widen what it is given.
    """
    realm = realm_of(challenge, asked)
    service = challenge.parameters.get("service")
    query = urlencode(([("service", service)] if service else []) + [("scope", one) for one in scope.split()])
    return f"{realm}{'&' if '?' in realm else '?'}{query}"


def realm_of(challenge: Challenge, asked: str) -> str:
    """The token endpoint that `challenge` names, met at the URL `asked`; raises RegistryFailed as `token_url`."""
    return check_url(challenge.parameters["realm"], asked, f"token endpoint of {asked.split('/')[2]}")


def without_token(
    login: Login, challenge: Challenge | None, challenges: Iterable[Challenge], now: float
) -> Grant | None:
    """The grant that needs no token endpoint: a registry token, or Basic if wanted and no Bearer `challenge` is."""
    credential = login.credential
    if credential is None:
        return None
    if credential.registry_token and _TOKEN.match(credential.registry_token):
        return Grant(f"Bearer {credential.registry_token}", now + REUSE, login)
    wants_basic = challenge is None and any(one.scheme == "basic" for one in challenges)
    if wants_basic and credential.has_password:
        return Grant(credential.basic(), now + REUSE, login)
    return None


def refresh_form(challenge: Challenge, scope: str, identity_token: str) -> bytes:
    """The body that asks for an access token by an identity token (distribution, "OAuth2", grant refresh_token)."""
    fields = {
        "grant_type": "refresh_token",
        "service": challenge.parameters.get("service", ""),
        "client_id": CLIENT,
        "scope": scope,
        "refresh_token": identity_token,
    }
    return urlencode(fields).encode()


def parse_successor(body: bytes) -> str:
    """The identity token that an answer puts in the place of the one it was asked with (RFC 6749, 6), or "" """
    try:
        answer = msgspec.convert(decode_json(body, "token answer"), dict[str, object])
    except (Malformed, msgspec.ValidationError):
        return ""
    text = answer.get("refresh_token")
    return text if isinstance(text, str) and _TOKEN.match(text) else ""


def parse_token(body: bytes, now: float, what: str) -> Token:
    """Read a token endpoint's answer; raises Malformed, never with a byte of the answer in the message."""
    try:
        answer = msgspec.convert(decode_json(body, "token answer"), dict[str, object])
    except (Malformed, msgspec.ValidationError):
        raise Malformed(f"{what} answered with what is no JSON object; try again later") from None
    text = answer.get("token") or answer.get("access_token")
    if not isinstance(text, str) or not _TOKEN.match(text):
        raise Malformed(f"{what} answered without a usable token; try again later")
    return Token(text, now + _lifetime(answer.get("expires_in")))


def _lifetime(expires_in: object) -> float:
    seconds = float(min(expires_in, LIFETIME_MAX)) if isinstance(expires_in, int | float) else LIFETIME
    if not seconds > 0:
        seconds = LIFETIME
    return seconds - min(MARGIN_MAX, seconds / 4)
