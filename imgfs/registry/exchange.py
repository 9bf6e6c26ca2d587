"""From a request to an answer worth reading: redirects, tokens, retries and pauses, in this order from the inside out.

What the answer's body must be is the caller's business. Errors of every status are decided here.
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
from imgfs.registry import status
from imgfs.registry.auth import grants
from imgfs.registry.auth.authenticator import Authenticator
from imgfs.registry.call import Call
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.hosts.endpoint import Endpoint, check_url, hostname, origin
from imgfs.registry.hosts.health import Health
from imgfs.registry.hosts.turns import Turns
from imgfs.registry.http.addresses import Reach, reach
from imgfs.registry.http.body import drain
from imgfs.registry.http.request import Request
from imgfs.registry.limits import Limits
from imgfs.registry.remedies import Again, Remedy, remedies_for
from imgfs.registry.retry import Pauses, Sleep, Told, Tries, nobody, retry_after
from imgfs.registry.statistics import Counters, Origin

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer
    from imgfs.registry.http.transport import Transport

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPING = frozenset({307, 308})
"""Redirects that leave method and body as they are (RFC 9110, 15.4)."""
NOWHERE_SECONDS = 30.0
"""Until a registry's name that could not be resolved is looked up again, to know which networks it is in."""
_log = logging.getLogger("imgfs.registry")


class Unsure(RemoteError):
    """Nobody knows whether a request was done that must not just be made again; what went wrong is `reason`.

    The pause before another attempt is over. Who gets this asks how things are.
    """

    def __init__(self, reason: ImgfsError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Exchange:
    """All calls of one Registry: its connections, tokens, pauses and counters."""

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
        """Of registries by authority, and until when that is believed."""

    def transport(self) -> Transport:
        """The connections; slow the first time, and safe in a thread."""
        with self._transport_lock:
            if self._transport is None:
                from imgfs.registry.http.transport import Transport

                self._transport = Transport(self.limits, self._context)
            return self._transport

    async def aclose(self) -> None:
        """Close every connection."""
        if self._transport is not None:
            await self._transport.aclose()

    def tries(self, host: str, turns: Turns | None = None, failed: Told = nobody) -> Tries:
        """A fresh count of attempts for one call to `host`, which may be one of several whose turn it is.

        `failed` is told of each that fails.
        """
        if turns is None:
            return Tries(self.limits, self._sleep, self.counters[host], failed=failed)
        return Tries(
            self.limits, self._sleep, self.counters[host], spare=turns.spare, patience=turns.patience, failed=failed
        )

    def turns(self, hosts: Sequence[Endpoint], what: str) -> Turns:
        """The order in which `hosts` are asked for `what`, with what is known of them now."""
        patience = current_patience() or Patience()
        return Turns(hosts, what, self.health, self._pauses, self.limits.patience, patience)

    async def open(self, call: Call, tries: Tries) -> Answer:
        """Ask until there is an answer with a status that `call` expects; its body is unread and the caller closes it.

        Raises NotFound, AccessDenied, RateLimited, RegistryFailed, Unreachable, TimedOut or TooLarge. `tries` may be
        shared with the caller's own attempts, so that they do not multiply. Raises Unsure instead of making a call that
        is not repeatable again. Cancellation closes the connection.
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
        """`open`, and `read` its answer, which `read` closes; asks again where the body breaks or stalls."""
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
        """Let the caller find out what became of a call before it is made again, unless that does no harm."""
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
        """Try `remedy` for a `call` that showed `grant`; None where it is of no use."""
        match remedy:
            case Remedy.FRESH_GRANT:
                return Again(await self._authenticator.renewed(call, answer, grant))
            case Remedy.CHANGED_LOGIN:
                # Shown nothing, the registry says again what it wants.
                return Again(None) if await self._authenticator.changed(call, grant) else None
            case Remedy.UNASKED_LOGIN:
                found = await self._authenticator.unasked(call)
                return Again(found) if found is not None else None
            case Remedy.FRESH_REDIRECT:
                return Again(grant)

    async def _await_next(self, answer: Answer, error: ImgfsError, tries: Tries) -> None:
        """Wait for another try where one is due, else raise `error`, which the answer's status means."""
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
        """Send the request and follow its redirects; the grant stays with the registry's own origin."""
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
        """Send what `call` asks to `url`, which is `foreign` where the registry led elsewhere, and count it."""
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
        """The inner networks that the registry is in itself, and may therefore name; none while it has no address."""
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
        """The error that an answer's status stands for."""
        if answer.request.foreign:
            return status.foreign_failure(answer.status, call.subject, call.host, answer.authority)
        who = f"the token endpoint {answer.authority}" if call.kind == "token" else f"registry {call.host}"
        login = await self._authenticator.login_of(call, grant) if answer.status in {401, 403} else None
        said = status.answered(who, answer.status, body)
        return status.own_failure(call, answer.status, said, login, shown=grant is not None)


def _headers(call: Call, url: str, grant: grants.Grant | None) -> dict[str, str]:
    """What `url` sees, names in lower case; of two that say the same the call's own before the configured."""
    own = {name.lower(): value for name, value in call.headers.items()}
    outgoing = call.outgoing.headers if call.outgoing is not None else {}
    shown = {"authorization": grant.header} if grant is not None and grant.header else {}
    configured = call.endpoint.headers_at(url)
    return {"user-agent": "imgfs", **configured, "accept-encoding": "identity", **own, **outgoing, **shown}


def _sender(where: Endpoint, url: str) -> Origin:
    if not where.owns(url):
        return "storage"
    return "mirror" if where.mirror else "registry"
