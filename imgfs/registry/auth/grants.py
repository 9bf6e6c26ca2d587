"""Challenges of registries (WWW-Authenticate) and what answers them: Basic, and bearer tokens, which are kept here.

Sources: RFC 9110, 11.6.1; RFC 6750; distribution, "Token Authentication" and its OAuth2 part. This module asks no
server; `authenticator` does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlencode

import msgspec
import trio

from imgfs.errors import ImgfsError, Malformed
from imgfs.oci.manifest import decode_json
from imgfs.registry.credentials.authfile import Login
from imgfs.registry.hosts.endpoint import check_url

HEADER_MAX = 64 << 10
LIFETIME = 60.0
"""Seconds that a token without `expires_in` is valid (distribution-spec)."""
LIFETIME_MAX = 24 * 3600.0
MARGIN_MAX = 30.0
REUSE = 300.0
"""Seconds for which a login that never expires is used before the auth files are read again."""
GRANTS_MAX = 4096
"""Cached grants. There is one for each repository, and users can look up any number of repositories."""
CLIENT = "imgfs"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATOR = re.compile(r"[\s,]*")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]++))(?=[\s,]|\Z)', re.DOTALL)
_SCHEME = re.compile(rf"({_TOKEN})(?=[\s,]|\Z)")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]++=*+(?=[ \t]*(?:,|\Z))")
_BEARER = re.compile(r"[\x21-\x7e]{1,65536}\Z")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(slots=True)
class Challenge:
    """One way to authenticate: a scheme and its parameters, names in lower case. The first of equal names is kept."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict[str, str])


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Parse the values of all WWW-Authenticate headers of an answer. Never raises; takes linear time.

    Parsing a value stops at the first syntax error, and the challenges before it are returned, because the client
    cannot answer a challenge that it cannot parse. Values are cut at HEADER_MAX.
    """
    return [challenge for value in values for challenge in _challenges(value[:HEADER_MAX])]


def _challenges(text: str) -> Iterator[Challenge]:
    current: Challenge | None = None
    position = _skip(text, 0)
    while position < len(text):
        if current is not None and (found := _PARAMETER.match(text, position)):
            name, quoted, plain = found.groups()
            current.parameters.setdefault(name.lower(), plain if quoted is None else _ESCAPE.sub(r"\1", quoted))
        elif found := _SCHEME.match(text, position):
            if current is not None:
                yield current
            current = Challenge(found[1].lower())
            found = _TOKEN68.match(text, found.end()) or found
        else:
            break
        position = _skip(text, found.end())
    if current is not None:
        yield current


def _skip(text: str, position: int) -> int:
    separator = _SEPARATOR.match(text, position)
    return separator.end() if separator else position


def bearer(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the first Bearer challenge that has a realm, or None."""
    return next((one for one in challenges if one.scheme == "bearer" and one.parameters.get("realm")), None)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the time (trio's clock) from which it is no longer used."""

    text: str = field(repr=False)
    until: float


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request shows: the Authorization header ("": none), the time of expiry, and the login behind it."""

    header: str = field(repr=False)
    until: float
    login: Login


@dataclass(slots=True)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    grant: Grant | None = None
    error: ImgfsError | None = None


class Grants:
    """The cached grants by key (registry and scope). Concurrent callers with one key share one request."""

    def __init__(self) -> None:
        self._grants: dict[Hashable, Grant] = {}
        self._flights: dict[Hashable, _Flight] = {}

    def current(self, key: Hashable) -> Grant | None:
        """Return the grant for `key`, if there is one that does not expire soon."""
        grant = self._grants.get(key)
        return grant if grant is not None and trio.current_time() < grant.until else None

    def drop(self, key: Hashable, grant: Grant) -> None:
        """Remove `grant` from the cache."""
        if self._grants.get(key) is grant:
            del self._grants[key]

    async def fresh(self, key: Hashable, stale: Grant | None, fetch: Callable[[], Awaitable[Grant]]) -> Grant:
        """Return a grant for `key` other than `stale`, which was refused.

        Concurrent callers share one `fetch` and its error. If its caller is cancelled, another caller fetches again.
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
        """Cache a grant. A full cache first drops expired grants, then the oldest; a dropped grant is fetched again."""
        if len(self._grants) >= GRANTS_MAX:
            now = trio.current_time()
            valid = [(known, one) for known, one in self._grants.items() if now < one.until]
            self._grants = dict(valid[-GRANTS_MAX // 2 :])
        self._grants.pop(key, None)
        self._grants[key] = grant


def scope_of(repository: str, access: str) -> str:
    """Return the scope for `access` (`pull`, or `pull,push`) to `repository`, or to the catalog if that is empty."""
    if not repository:
        return f"registry:catalog:{access}"
    return f"repository:{repository}:{access}"


def token_url(challenge: Challenge, asked: str, scope: str) -> str:
    """Return the URL that gets a token for `challenge`, which came from the URL `asked`.

    The scope is the caller's, never the challenge's, so that a registry cannot widen it. Raises RegistryFailed for a
    realm that must not be trusted.
    """
    realm = realm_of(challenge, asked)
    service = challenge.parameters.get("service")
    query = urlencode(([("service", service)] if service else []) + [("scope", one) for one in scope.split()])
    return f"{realm}{'&' if '?' in realm else '?'}{query}"


def realm_of(challenge: Challenge, asked: str) -> str:
    """Return the token endpoint that `challenge` from the URL `asked` names. Raises RegistryFailed as `token_url`."""
    return check_url(challenge.parameters["realm"], asked, f"token endpoint of {asked.split('/')[2]}")


def without_token(
    login: Login, challenge: Challenge | None, challenges: Iterable[Challenge], now: float
) -> Grant | None:
    """Return a grant that needs no token endpoint: a registry token, or Basic if there is no Bearer `challenge`."""
    credential = login.credential
    if credential is None:
        return None
    if credential.registry_token and _BEARER.match(credential.registry_token):
        return Grant(f"Bearer {credential.registry_token}", now + REUSE, login)
    wants_basic = challenge is None and any(one.scheme == "basic" for one in challenges)
    if wants_basic and credential.has_password:
        return Grant(credential.basic(), now + REUSE, login)
    return None


def refresh_form(challenge: Challenge, scope: str, identity_token: str) -> bytes:
    """Return the form that exchanges an identity token for an access token (distribution, "OAuth2", refresh_token)."""
    fields = {
        "grant_type": "refresh_token",
        "service": challenge.parameters.get("service", ""),
        "client_id": CLIENT,
        "scope": scope,
        "refresh_token": identity_token,
    }
    return urlencode(fields).encode()


def parse_successor(body: bytes) -> str:
    """Return the identity token that replaces the one in the request (RFC 6749, 6), or ""."""
    try:
        answer = msgspec.convert(decode_json(body, "token answer"), dict[str, object])
    except (Malformed, msgspec.ValidationError):
        return ""
    text = answer.get("refresh_token")
    return text if isinstance(text, str) and _BEARER.match(text) else ""


def parse_token(body: bytes, now: float, what: str) -> Token:
    """Parse the answer of a token endpoint. Raises Malformed; the message never contains bytes of the answer."""
    try:
        answer = msgspec.convert(decode_json(body, "token answer"), dict[str, object])
    except (Malformed, msgspec.ValidationError):
        raise Malformed(f"{what} answered with what is no JSON object; try again later") from None
    text = answer.get("token") or answer.get("access_token")
    if not isinstance(text, str) or not _BEARER.match(text):
        raise Malformed(f"{what} answered without a usable token; try again later")
    return Token(text, now + _lifetime(answer.get("expires_in")))


def _lifetime(expires_in: object) -> float:
    seconds = float(min(expires_in, LIFETIME_MAX)) if isinstance(expires_in, int | float) else LIFETIME
    if not seconds > 0:
        seconds = LIFETIME
    return seconds - min(MARGIN_MAX, seconds / 4)
