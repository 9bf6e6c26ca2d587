"""Bearer tokens (distribution-spec, "Token Authentication"): asked for once, kept until shortly before they expire.

Anonymous: a token request carries no credential. How the request travels is the exchange's business.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from urllib.parse import urlencode

import msgspec
import trio

from imgfs.errors import ImgfsError, Malformed
from imgfs.oci.manifest import decode_json
from imgfs.registry.challenge import Challenge
from imgfs.registry.hosts import check_url

LIFETIME = 60.0
"""Of a token that does not say (distribution-spec)."""
LIFETIME_MAX = 24 * 3600.0
MARGIN_MAX = 30.0
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}\Z")


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the time (trio's clock) at which it is no longer offered."""

    text: str = field(repr=False)
    until: float


@dataclass(slots=True)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    token: Token | None = None
    error: ImgfsError | None = None


class Tokens:
    """The tokens of one daemon by key (registry and scope). Many askers of one key make one request."""

    def __init__(self) -> None:
        self._tokens: dict[Hashable, Token] = {}
        self._flights: dict[Hashable, _Flight] = {}

    def current(self, key: Hashable) -> str | None:
        """The token for `key`, if there is one that is not about to expire."""
        token = self._tokens.get(key)
        return token.text if token is not None and trio.current_time() < token.until else None

    async def fresh(self, key: Hashable, stale: str | None, fetch: Callable[[], Awaitable[Token]]) -> str:
        """A token for `key` that is not `stale`, the refused one.

        All who wait share one `fetch` and its error. A cancelled one is done again by one of the others.
        """
        while True:
            token = self.current(key)
            if token is not None and token != stale:
                return token
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, fetch)
            await flight.done.wait()
            if flight.error is not None:
                raise copy.copy(flight.error)
            if flight.token is not None:
                return flight.token.text

    async def _lead(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> str:
        flight = self._flights[key] = _Flight()
        try:
            flight.token = self._tokens[key] = await fetch()
        except ImgfsError as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.done.set()
        return flight.token.text


def pull_scope(repository: str) -> str:
    """The scope that reading `repository` needs."""
    return f"repository:{repository}:pull"


def token_url(challenge: Challenge, asked: str, scope: str) -> str:
    """The URL that answers `challenge`, met at the URL `asked`; raises RegistryFailed for a realm not to be trusted.

    The scope is the caller's own, never the challenge's: a registry cannot widen what it is given.
    """
    realm = check_url(challenge.parameters["realm"], asked, f"token endpoint of {asked.split('/')[2]}")
    service = challenge.parameters.get("service")
    query = urlencode(([("service", service)] if service else []) + [("scope", scope)])
    return f"{realm}{'&' if '?' in realm else '?'}{query}"


def parse_token(body: bytes, now: float, what: str) -> Token:
    """Read a token endpoint's answer; raises Malformed, never with a byte of the answer in the message."""
    try:
        answer = msgspec.convert(decode_json(body, "token answer"), dict[str, object])
    except (Malformed, msgspec.ValidationError):
        raise Malformed(f"{what}: the token endpoint's answer is no JSON object; try again later") from None
    text = answer.get("token") or answer.get("access_token")
    if not isinstance(text, str) or not _TOKEN.match(text):
        raise Malformed(f"{what}: the token endpoint's answer holds no usable token; try again later")
    return Token(text, now + _lifetime(answer.get("expires_in")))


def _lifetime(expires_in: object) -> float:
    seconds = float(min(expires_in, LIFETIME_MAX)) if isinstance(expires_in, int | float) else LIFETIME
    if not seconds > 0:
        seconds = LIFETIME
    return seconds - min(MARGIN_MAX, seconds / 4)
