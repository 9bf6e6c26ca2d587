"""From a request to an answer worth reading: redirects, tokens, retries and pauses, in this order from the inside out.

What the answer's body must be is the caller's business. Errors of every status are decided here.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

import trio

from imgfs.errors import AccessDenied, ImgfsError, RegistryFailed, RemoteError, TimedOut, Unreachable
from imgfs.registry import auth, status
from imgfs.registry.addresses import Reach, reach
from imgfs.registry.body import drain, read_all
from imgfs.registry.challenge import Challenge, bearer, parse_challenges
from imgfs.registry.hosts import Endpoint, check_url, hostname, origin
from imgfs.registry.limits import Limits
from imgfs.registry.retry import Pauses, Sleep, Tries, retry_after
from imgfs.registry.statistics import HostStatistics

if TYPE_CHECKING:
    from imgfs.registry.transport import Answer, Wire

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_log = logging.getLogger("imgfs.registry")


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to ask of a registry. `subject` begins every message; `kind` is a key of the statistics."""

    kind: str
    endpoint: Endpoint
    repository: str
    url: str
    subject: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    expects: frozenset[int] = frozenset({200})
    """The statuses that are the caller's to judge; any other is an error."""

    @property
    def host(self) -> str:
        """The registry, as references name it."""
        return self.endpoint.host

    @property
    def scope(self) -> tuple[str, str]:
        """What a token for this call is kept under."""
        return self.host, auth.pull_scope(self.repository)


class Exchange:
    """All calls of one Registry: its connections, tokens, pauses and counters."""

    def __init__(self, limits: Limits, sleep: Sleep, context: ssl.SSLContext | None) -> None:
        self.limits = limits
        self.counters: defaultdict[str, HostStatistics] = defaultdict(HostStatistics)
        self._sleep = sleep
        self._context = context
        self._wire: Wire | None = None
        self._wire_lock = threading.Lock()
        self._tokens = auth.Tokens()
        self._pauses = Pauses(sleep)
        self._reaches: dict[str, Reach] = {}

    def wire(self) -> Wire:
        """The connections; slow the first time, and safe in a thread."""
        with self._wire_lock:
            if self._wire is None:
                from imgfs.registry.transport import Wire

                self._wire = Wire(self.limits, self._context)
            return self._wire

    async def aclose(self) -> None:
        """Close every connection."""
        if self._wire is not None:
            await self._wire.aclose()

    def tries(self, host: str) -> Tries:
        """A fresh count of attempts for one call to `host`."""
        return Tries(self.limits, self._sleep, self.counters[host])

    async def open(self, call: Call, tries: Tries) -> Answer:
        """Ask until there is an answer with a status that `call` expects; its body is unread and the caller closes it.

        Raises NotFound, AccessDenied, RateLimited, RegistryFailed, Unreachable, TimedOut or TooLarge. `tries` may be
        shared with the caller's own attempts, so that they do not multiply. Cancellation closes the connection.
        """
        token = self._tokens.current(call.scope) if call.kind != "token" else None
        remedies: set[str] = set()
        while True:
            try:
                answer = await self._follow(call, token)
            except (Unreachable, TimedOut) as error:
                await tries.again(error)
                continue
            if answer.status in call.expects:
                return answer
            remedy = self._remedy(call, answer)
            if remedy in {"", *remedies}:
                await self._fail(call, answer, tries)
            else:
                remedies.add(remedy)
                await drain(answer)
                token = await self._renewed(call, answer, token) if remedy == "token" else token

    async def fetch(self, call: Call, read: Callable[[Answer], Awaitable[T]]) -> T:
        """`open`, and `read` its answer, which `read` closes; asks again where the body breaks or stalls."""
        tries = self.tries(call.host)
        while True:
            answer = await self.open(call, tries)
            try:
                return await read(answer)
            except (Unreachable, TimedOut) as error:
                await tries.again(error)

    def _remedy(self, call: Call, answer: Answer) -> str:
        """What may cure a refusal, once: a fresh token, or a fresh redirect in place of one that expired."""
        if answer.foreign:
            return "redirect" if answer.status in {401, 403} else ""
        return "token" if answer.status == 401 and call.kind != "token" else ""

    async def _fail(self, call: Call, answer: Answer, tries: Tries) -> None:
        """Wait for another try where one is due, else raise what the answer's status means."""
        body = await drain(answer)
        error = failure(call, answer, body)
        rest = retry_after(answer.headers.get("retry-after"))
        if not isinstance(error, RemoteError) or (answer.status != 429 and answer.status < 500):
            raise error
        if rest is not None and answer.status in {429, 503}:
            self._pauses.pause(answer.authority, tries.rest(error, rest))
        else:
            await tries.again(error)

    async def _follow(self, call: Call, token: str | None) -> Answer:
        """Send the request and follow its redirects; the token stays with the registry's own origin."""
        url, foreign, seen = call.url, False, set[str]()
        while True:
            seen.add(url)
            answer = await self._send(call, url, None if foreign else token, len(seen) > 1)
            answer.foreign = foreign
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            await drain(answer)
            url = self._redirected(call, url, location, seen)
            foreign = foreign or origin(url) != origin(call.url)

    def _redirected(self, call: Call, url: str, location: str, seen: set[str]) -> str:
        what = f"{call.subject}: redirect of registry {call.host}"
        try:
            joined = urljoin(url, location)
        except ValueError:
            joined = ""
        target = check_url(joined, url, what)
        if target in seen:
            raise RegistryFailed(f"{what}: leads in a circle at {urlsplit(target).netloc}; report it to its operator")
        if len(seen) > self.limits.redirects:
            raise RegistryFailed(f"{what}: more than {self.limits.redirects} in a row; report it to its operator")
        return target

    async def _send(self, call: Call, url: str, token: str | None, redirected: bool) -> Answer:
        authority = urlsplit(url).netloc
        await self._pauses.wait(authority)
        wire = self._wire or await trio.to_thread.run_sync(self.wire)
        headers = {"Accept-Encoding": "identity", "User-Agent": "imgfs", **call.headers}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        permitted = None if hostname(url) == call.endpoint.name else await self._reach(call.endpoint)
        counters = self.counters[call.host]
        counters.requests["redirect" if redirected else call.kind] += 1
        answer = await wire.send(call.method, url, headers, permitted, counters, call.subject)
        _log.debug(
            "request", extra={"kind": call.kind, "method": call.method, "host": authority, "status": answer.status}
        )
        return answer

    async def _reach(self, endpoint: Endpoint) -> Reach:
        """The inner networks that the registry is in itself, and may therefore name."""
        if endpoint.authority not in self._reaches:
            _, name, port = origin(f"{endpoint.scheme}://{endpoint.authority}")
            self._reaches[endpoint.authority] = await reach(name, port)
        return self._reaches[endpoint.authority]

    async def _renewed(self, call: Call, answer: Answer, stale: str | None) -> str:
        """A token that answers the challenge of a 401, other than the `stale` one that was refused."""
        challenges = parse_challenges(answer.header_values("www-authenticate"))
        challenge = bearer(challenges)
        if challenge is None:
            raise unanswerable(call, challenges)
        return await self._tokens.fresh(call.scope, stale, lambda: self._fetch_token(call, challenge))

    async def _fetch_token(self, call: Call, challenge: Challenge) -> auth.Token:
        url = auth.token_url(challenge, call.url, auth.pull_scope(call.repository))
        subject = f"token for {call.host}/{call.repository}"
        asking = Call("token", call.endpoint, call.repository, url, subject)
        body = await self.fetch(asking, lambda answer: read_all(answer, self.limits.token, subject))
        return auth.parse_token(body, trio.current_time(), subject)


def failure(call: Call, answer: Answer, body: bytes) -> ImgfsError:
    """The error that an answer's status stands for."""
    if answer.foreign:
        return status.foreign_failure(answer.status, call.subject, call.host, answer.authority)
    code = status.error_code(body)
    return status.own_failure(answer.status, call.subject, call.host, code, absent=call.kind != "token")


def unanswerable(call: Call, challenges: list[Challenge]) -> ImgfsError:
    """The error for a 401 without a Bearer challenge."""
    schemes = ", ".join(sorted({one.scheme for one in challenges}))[:80]
    if schemes:
        return AccessDenied(
            f"{call.subject}: registry {call.host} answered 401 and asks for a login ({schemes}); "
            "imgfs has no credentials for it"
        )
    return AccessDenied(
        f"{call.subject}: registry {call.host} answered 401 without saying how to log in; check that it is a registry"
    )
