"""From a call to an answer with an expected status: redirects, tokens, retries and pauses, from the inside out.

This module maps every other status to an error. The caller checks the body of the answer.
"""

from __future__ import annotations

import logging
import math
import ssl
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

import trio

from imgfs.aio.patience import Patience, current_patience
from imgfs.errors import Garbled, ImgfsError, RegistryFailed, RemoteError, TimedOut, Unreachable
from imgfs.registry.auth import grants
from imgfs.registry.auth.authenticator import Authenticator
from imgfs.registry.call import Call
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.hosts.endpoint import Endpoint, check_url, hostname, origin
from imgfs.registry.hosts.health import Health
from imgfs.registry.hosts.turns import Turns
from imgfs.registry.http.body import drain
from imgfs.registry.http.request import Request
from imgfs.registry.http.resolver import Reach, reach
from imgfs.registry.limits import Limits
from imgfs.registry.refusals import Again, Remedy, answered, foreign_failure, own_failure, remedies_for
from imgfs.registry.retry import FailureCallback, Pauses, Sleep, Tries, ignore_failure, retry_after
from imgfs.registry.statistics import Counters, Origin

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer
    from imgfs.registry.http.transport import Transport

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPING = frozenset({307, 308})
"""Redirects that keep the method and the body (RFC 9110, 15.4)."""
NOWHERE_SECONDS = 30.0
"""Seconds until a registry's name that could not be resolved is resolved again, to find the networks it is in."""
_log = logging.getLogger("imgfs.registry")


class Unsure(RemoteError):
    """It is unknown whether the registry has executed a request that must not be repeated. `reason` is the failure.

    The pause before another attempt is over. The caller must ask the registry for the current state.
    """

    def __init__(self, reason: ImgfsError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Exchange:
    """Executes all calls of one Registry. Owns its connections, tokens, pauses and counters."""

    def __init__(
        self,
        limits: Limits,
        sleep: Sleep,
        context: ssl.SSLContext | None,
        credentials: Credentials | None = None,
        plain_http: Collection[str] = (),
    ) -> None:
        self.limits = limits
        self.counters = Counters()
        self._sleep = sleep
        self._context = context
        self._transport: Transport | None = None
        self._transport_lock = threading.Lock()
        self._authenticator = Authenticator(credentials, plain_http, limits.token, self.fetch)
        self._pauses = Pauses(sleep)
        self.health = Health()
        self._reaches: dict[str, tuple[Reach, float]] = {}
        """The inner networks of each registry by authority, and the time until which that is valid."""

    def transport(self) -> Transport:
        """Return the transport. The first call is slow; it may run in a thread."""
        with self._transport_lock:
            if self._transport is None:
                from imgfs.registry.http.transport import Transport

                self._transport = Transport(self.limits, self._context)
            return self._transport

    async def aclose(self) -> None:
        """Close every connection."""
        if self._transport is not None:
            await self._transport.aclose()

    def tries(self, host: str, turns: Turns | None = None, failed: FailureCallback = ignore_failure) -> Tries:
        """Return a new count of attempts for one call to `host`, which may be the current one of `turns`.

        `failed` is called with each failed attempt.
        """
        if turns is None:
            return Tries(self.limits, self._sleep, self.counters[host], failed=failed)
        return Tries(
            self.limits, self._sleep, self.counters[host], spare=turns.spare, patience=turns.patience, failed=failed
        )

    def turns(self, hosts: Sequence[Endpoint], what: str) -> Turns:
        """Return the order in which to ask `hosts` for `what`, by what is known of them now."""
        patience = current_patience() or Patience()
        return Turns(hosts, what, self.health, self._pauses, self.limits.patience, patience)

    async def open(self, call: Call, tries: Tries) -> Answer:
        """Send `call` until an answer has a status that it expects. The caller reads the body and closes the answer.

        Raises NotFound, AccessDenied, RateLimited, RegistryFailed, Unreachable, TimedOut or TooLarge. `tries` may be
        shared with the caller's own attempts, so that they do not multiply. Raises Unsure instead of repeating a call
        that is not repeatable. Cancellation closes the connection.
        """
        with tries.patience.waiting():
            return await self._open(call, tries)

    async def _open(self, call: Call, tries: Tries) -> Answer:
        grant = self._authenticator.current(call)
        tried = set[Remedy]()
        while True:
            try:
                answer = await self._follow(call, grant, tries)
            except (Unreachable, TimedOut, Garbled) as error:
                await tries.again(error)
                self._refuse_again(call, error)
                continue
            if answer.status in call.expects:
                return answer
            body = await drain(answer)
            if (again := await self._remedied(call, answer, grant, tried)) is not None:
                grant = again.grant
                continue
            error = await self._failure(call, answer, body, grant)
            await self._await_next(answer, error, tries)
            self._refuse_again(call, error)

    async def fetch(self, call: Call, read: Callable[[Answer], Awaitable[T]], tries: Tries | None = None) -> T:
        """Open `call` and return what `read` makes of its answer. `read` closes the answer.

        Repeats both if the body breaks or stalls.
        """
        if tries is None:
            patience = current_patience()
            tries = Tries(self.limits, self._sleep, self.counters[call.host], patience=patience)
        while True:
            answer = await self.open(call, tries)
            try:
                result = await read(answer)
            except (Unreachable, TimedOut) as error:
                await tries.again(error)
            else:
                tries.completed()
                return result

    def _refuse_again(self, call: Call, error: ImgfsError) -> None:
        """Raise Unsure if `call` must not be repeated before its caller knows what the registry has done."""
        if not call.repeatable:
            raise Unsure(error)

    async def _remedied(
        self, call: Call, answer: Answer, grant: grants.Grant | None, tried: set[Remedy]
    ) -> Again | None:
        """Try the remedies for a refusal that this call has not tried yet; None if none of them is of use."""
        for remedy in remedies_for(call, answer, grant):
            if remedy not in tried:
                tried.add(remedy)
                if (again := await self._apply(remedy, call, answer, grant)) is not None:
                    return again
        return None

    async def _apply(self, remedy: Remedy, call: Call, answer: Answer, grant: grants.Grant | None) -> Again | None:
        """Apply `remedy` to a `call` that was sent with `grant`. Return None if it does not help."""
        match remedy:
            case Remedy.FRESH_GRANT:
                return Again(await self._authenticator.renewed(call, answer, grant))
            case Remedy.CHANGED_LOGIN:
                # A request without a grant makes the registry send its challenge again.
                return Again(None) if await self._authenticator.changed(call, grant) else None
            case Remedy.UNASKED_LOGIN:
                found = await self._authenticator.unasked(call)
                return Again(found) if found is not None else None
            case Remedy.FRESH_REDIRECT:
                return Again(grant)

    async def _await_next(self, answer: Answer, error: ImgfsError, tries: Tries) -> None:
        """Wait before another attempt, or raise `error`, which the answer's status means."""
        rest = retry_after(answer.headers.get("retry-after"))
        if not isinstance(error, RemoteError) or (answer.status != 429 and answer.status < 500):
            tries.count(error)
            raise error
        if rest is not None and answer.status in {429, 503}:
            if tries.spare():
                self._pauses.pause(answer.authority, min(rest, self.limits.pause), error)
            self._pauses.pause(answer.authority, tries.rest(error, rest), error)
            await tries.linger(rest)
        else:
            await tries.again(error)

    async def _follow(self, call: Call, grant: grants.Grant | None, tries: Tries) -> Answer:
        """Send the request and follow redirects. Only the registry's own origin gets the grant."""
        url, foreign, seen = call.url, not call.endpoint.owns(call.url) and call.kind != "token", set[str]()
        began = trio.current_time()
        while True:
            seen.add(url)
            await self._pauses.wait(urlsplit(url).netloc, tries, call.subject)
            answer = await self._send(call, url, grant, tries.patience, foreign=foreign)
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            await drain(answer)
            url = self._redirected(call, url, location, seen)
            if trio.current_time() - began > self.limits.patience:
                raise TimedOut(
                    f"{call.subject}: redirects of registry {call.host} come too slowly, the next leads to "
                    f"{urlsplit(url).netloc}; check the network and the registry, then try again"
                )
            if call.method not in {"GET", "HEAD"} and answer.status not in _KEEPING:
                raise RegistryFailed(
                    f"{call.subject}: {answer.authority} redirects with {answer.status}, which loses what is sent; "
                    "report it to its operator"
                )
            foreign = foreign or origin(url) != origin(call.url)

    def _redirected(self, call: Call, url: str, location: str, seen: set[str]) -> str:
        what = f"{call.subject}: redirect of registry {call.host}"
        try:
            joined = urljoin(url, location)
        except ValueError:
            joined = ""
        target = check_url(joined, url, what)
        if call.body:
            raise RegistryFailed(
                f"{what}: a login is not sent on to {urlsplit(target).netloc}; report it to its operator"
            )
        if target in seen:
            raise RegistryFailed(f"{what}: leads in a circle at {urlsplit(target).netloc}; report it to its operator")
        if len(seen) > self.limits.redirects:
            raise RegistryFailed(f"{what}: more than {self.limits.redirects} in a row; report it to its operator")
        return target

    async def _send(
        self, call: Call, url: str, grant: grants.Grant | None, patience: Patience, *, foreign: bool
    ) -> Answer:
        """Send `call` to `url` and count it. `foreign`: the registry redirected to another origin."""
        transport = self._transport or await trio.to_thread.run_sync(self.transport)
        request = await self._request(call, url, None if foreign else grant, foreign=foreign)
        if call.outgoing is None and patience.idle >= self.limits.call:
            raise TimedOut(
                f"{call.subject}: no progress for {self.limits.call:g} s; check the network and the registry "
                f"{call.host}, then read again"
            )
        counters = self.counters[call.host]
        counters.requests[call.kind if url == call.url else "redirect"] += 1
        answer = await transport.send(request, counters, patience)
        counters.answered(answer.status)
        facts = {"kind": call.kind, "method": call.method, "host": answer.authority, "status": answer.status}
        _log.debug("request", extra=facts)
        return answer

    async def _request(self, call: Call, url: str, grant: grants.Grant | None, *, foreign: bool) -> Request:
        where = call.endpoint
        permitted = None if hostname(url) == where.name else await self._reach(where)
        return Request(
            call.method,
            url,
            call.subject,
            _headers(call, url, grant),
            where.route(url, permitted),
            call.body,
            call.outgoing,
            origin=_sender(where, url),
            foreign=foreign,
            confidential=bool(where.headers) or (grant is not None and grant.login.credential is not None),
        )

    async def _reach(self, endpoint: Endpoint) -> Reach:
        """Return the inner networks that the registry itself is in. It may redirect to these."""
        nowhere: Reach = frozenset()
        known, until = self._reaches.get(endpoint.authority, (nowhere, 0.0))
        if trio.current_time() < until:
            return known
        _, name, port = origin(endpoint.base)
        try:
            found = await reach(name, port), math.inf
        except OSError:
            found = nowhere, trio.current_time() + NOWHERE_SECONDS
        self._reaches[endpoint.authority] = found
        return found[0]

    async def _failure(self, call: Call, answer: Answer, body: bytes, grant: grants.Grant | None) -> ImgfsError:
        """Return the error for the status of `answer`."""
        if answer.request.foreign:
            return foreign_failure(answer.status, call.subject, call.host, answer.authority)
        who = f"the token endpoint {answer.authority}" if call.kind == "token" else f"registry {call.host}"
        login = await self._authenticator.login_of(call, grant) if answer.status in {401, 403} else None
        said = answered(who, answer.status, body)
        return own_failure(call, answer.status, said, login, shown=grant is not None)


def _headers(call: Call, url: str, grant: grants.Grant | None) -> dict[str, str]:
    """Return the request headers for `url`, names in lower case. The call's headers replace configured ones."""
    own = {name.lower(): value for name, value in call.headers.items()}
    outgoing = call.outgoing.headers if call.outgoing is not None else {}
    shown = {"authorization": grant.header} if grant is not None and grant.header else {}
    configured = call.endpoint.headers_at(url)
    return {"user-agent": "imgfs", **configured, "accept-encoding": "identity", **own, **outgoing, **shown}


def _sender(where: Endpoint, url: str) -> Origin:
    if not where.owns(url):
        return "storage"
    return "mirror" if where.mirror else "registry"
