"""The door to registries: manifests and blobs by name, verified as far as their bytes are held here."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import trio

from imgfs.aio.fair import FairLimiter
from imgfs.database.database import Database
from imgfs.errors import Invalid, RegistryFailed, VerificationFailed
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Reference
from imgfs.registry.blob import BlobStream
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.certs_d import HostDirectories
from imgfs.registry.hosts.endpoint import Endpoint, endpoint
from imgfs.registry.hosts.senders import Senders
from imgfs.registry.hosts.turns import FAULTS, Turns
from imgfs.registry.limits import Limits
from imgfs.registry.lists import Lists
from imgfs.registry.manifests import Manifests
from imgfs.registry.push.destination import Destination, Gates
from imgfs.registry.push.sessions import Sessions
from imgfs.registry.ranges import BlobRange
from imgfs.registry.retry import Sleep, Told, Tries, nobody
from imgfs.registry.statistics import Statistics

T = TypeVar("T")


class Registry:
    """Every registry there is. One a daemon, inside trio: `async with Registry() as registry`.

    `plain_http` names hosts (`host:port`, or `host` for every port) that are spoken to without TLS, besides loopback.
    `hosts_path` are the directories of `certs_d`: mirrors, certificates and headers. Where a registry has mirrors they
    are asked in order, then itself; each call ends at the first that does what it is asked for.
    `sleep` does the waiting between tries, `ssl_context` replaces the system's certificates. `credentials` are shown to
    registries that ask for a login; without them access is anonymous. With a `database` that has the tables of
    `push.sessions`, uploads of which parts have arrived go on after a restart.

    No ping comes first: an open registry sees one request a call, one with tokens two more for the first call to each
    repository; the ping comes where a registry refuses without asking for the login that there is. Every method raises,
    besides its own: NotFound (the registry's own 404 and nothing else), AccessDenied, RateLimited, RegistryFailed,
    Unreachable, TimedOut, TooLarge, Malformed (an answer that is no registry's), Invalid (no host). Messages hold no
    login, no token and no query of a URL. Each call ends within two minutes without progress, and can be cancelled at
    any time: that closes its connection and leaves the other calls alone.
    """

    def __init__(
        self,
        *,
        limits: Limits = Limits(),  # noqa: B008 - an immutable value
        plain_http: Collection[str] = (),
        hosts_path: Sequence[str | Path] = (),
        sleep: Sleep = trio.sleep,
        ssl_context: ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
        database: Database | None = None,
    ) -> None:
        self._plain_http = frozenset(plain_http)
        self._directories = HostDirectories(hosts_path, plain_http)
        self._limits = limits
        self._exchange = Exchange(limits, sleep, ssl_context, credentials, self._plain_http)
        self._manifests = Manifests(self._exchange)
        self._lists = Lists(self._exchange, self._ask, self.manifest)
        self._gates: dict[tuple[str, bool], FairLimiter] = {}
        self._senders = Senders(self._exchange.health)
        self._sessions = Sessions(database)
        self._push_gates: dict[str, Gates] = {}

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exchange.aclose()

    def warm(self) -> None:
        """Import and create what is slow: httpx, TLS context, IDNA. Call it in a thread before the first request."""
        self._exchange.transport().warm()
        "".encode("idna")

    def statistics(self) -> Statistics:
        """The counters so far."""
        return Statistics({host: counters.copy() for host, counters in self._exchange.counters.items()})

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask what `reference` stands for: one HEAD, and a GET only if its answer lacks a digest, size or type.

        The registry's word: the bytes are not seen. Raises VerificationFailed if it names another digest than asked.
        Source: distribution-spec, "Checking if content exists in the registry".
        """
        turns = await self._turns(reference.host, "resolve", reference)
        return await self._each(turns, lambda where, tries: self._manifests.resolve(reference, where, tries))

    async def manifest(self, reference: Reference) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index that `reference` names, in one request: its descriptor and exact bytes.

        The bytes are verified against the reference's digest, else against the digest the registry states, if any:
        raises VerificationFailed. Raises TooLarge above the limit, without reading on, Unsupported for the
        Content-Type of another kind of document, and Malformed for one that no document has. The caller parses the
        bytes. Source: distribution-spec, "Pulling manifests".
        """
        capability = "resolve" if reference.digest is None else "pull"
        turns = await self._turns(reference.host, capability, reference)
        return await self._each(turns, lambda where, tries: self._manifest(reference, where, tries))

    async def referrers(self, host: str, repository: str, subject: Digest, artifact_type: str = "") -> list[Descriptor]:
        """What refers to `subject`, by the registry's word; of one `artifact_type` if that is given. Empty for none.

        Asks the referrers API, and where a registry has none for the tag that stands in for it. Read to the last page:
        raises TooLarge over the limits, RegistryFailed for pages that lead elsewhere or in a circle.
        """
        return await self._lists.referrers(host, repository, subject, artifact_type)

    async def tags(self, host: str, repository: str) -> list[str]:
        """The tags of a repository, in the registry's order. Raises as `referrers`."""
        return await self._lists.tags(host, repository)

    async def repositories(self, host: str) -> list[str]:
        """The catalogue of a registry, in its order; many registries have none. Raises as `referrers`."""
        return await self._lists.repositories(host)

    def blob(
        self,
        host: str,
        repository: str,
        descriptor: Descriptor,
        offset: int = 0,
        end: int | None = None,
        *,
        failed: Told = nobody,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream the raw bytes of a blob from `offset` to `end` (by default its size): exactly these, in order.

        Entering sends the request, so refusals are raised there; an empty range sends none. A broken or stalled body
        is resumed where it broke. **The digest is not verified here**: the consumer hashes. Raises VerificationFailed
        for a length or a Content-Range other than the descriptor's, before the last byte is handed out. Leaving the
        context closes the connection without draining it; after the last byte it is kept for the next call. At most
        `limits.streams` of a host are open at a time, and `short_streams` of short ones; others wait on entering,
        repositories by turns. `failed` is told of each try that fails, also if another one mends it. Source:
        distribution-spec, "Pulling blobs".
        """
        wanted = BlobRange(host, repository, descriptor, offset, descriptor.size if end is None else end)
        if not 0 <= wanted.start <= wanted.end <= wanted.size:
            raise Invalid(f"blob {descriptor.digest}: bytes {offset} to {end} are not within its {descriptor.size}")
        endpoint(host)
        return self._stream(wanted, failed)

    async def destination(self, host: str, repository: str) -> Destination:
        """Where what is pushed to `repository` of `host` goes: the first of its hosts that has the capability push.

        Raises Invalid, and RegistryFailed where there is none. Nobody is asked yet.
        """
        where = (await self._able(host, "push", f"{host}/{repository}"))[0]
        fresh = Gates(trio.Semaphore(self._limits.streams), trio.Semaphore(self._limits.uploads))
        gates = self._push_gates.setdefault(where.authority, fresh)
        return Destination(self._exchange, self._sessions, self._manifests, where, repository, gates)

    def blame(self, host: str, digest: Digest, error: VerificationFailed) -> VerificationFailed:
        """The bytes of a blob that `blob` gave were wrong: leave whoever sent them, for this blob, for ten minutes.

        Where nobody else could be asked anyway, nobody is left. Returns the error to raise, which names the senders: a
        SenderLeft where asking again asks somebody who has not sent wrong bytes yet.
        """
        return self._senders.blame(host, digest, error)

    @asynccontextmanager
    async def _stream(self, wanted: BlobRange, failed: Told) -> AsyncGenerator[AsyncIterator[bytes]]:
        host, digest = wanted.host, wanted.descriptor.digest
        able = await self._able(host, "pull", digest)
        turns = self._exchange.turns(able, digest)
        gate = partial(self._gate, is_short=wanted.end - wanted.start <= self._limits.short)
        stream = BlobStream(self._exchange, turns, wanted, gate, self._senders.of(host, digest, able), failed)
        try:
            await stream.open()
            yield stream
        except VerificationFailed as error:
            raise self.blame(host, digest, error) from None
        finally:
            await stream.aclose()

    def _gate(self, where: Endpoint, *, is_short: bool) -> FairLimiter:
        limits = self._limits
        if is_short:
            fresh = FairLimiter(limits.short_streams, limits.spare_short_streams)
        else:
            fresh = FairLimiter(limits.streams, limits.spare_streams)
        return self._gates.setdefault((where.authority, is_short), fresh)

    async def _turns(self, host: str, capability: str, what: object) -> Turns:
        """Who is asked for `what`, in order. Raises as `_able`."""
        return self._exchange.turns(await self._able(host, capability, what), str(what))

    async def _able(self, host: str, capability: str, what: object) -> list[Endpoint]:
        """Who may be asked for `what`. Raises Invalid, and RegistryFailed where that is nobody."""
        hosts = await self._directories.find(host)
        able = [one for one in hosts if one.can(capability)]
        if not able:
            raise RegistryFailed(f"{what}: no host of {host} has the capability {capability}; check its hosts.toml")
        return able

    async def _ask(self, host: str, capability: str, ask: Callable[[Endpoint, Tries], Awaitable[T]]) -> T:
        return await self._each(await self._turns(host, capability, f"{capability} of {host}"), ask)

    async def _each(self, turns: Turns, ask: Callable[[Endpoint, Tries], Awaitable[T]]) -> T:
        """What the first host says that does as asked."""
        while True:
            where = turns.current
            try:
                found = await ask(where, self._exchange.tries(where.host, turns))
            except FAULTS as error:
                turns.leave(error)
            else:
                turns.well()
                return found

    async def _manifest(self, reference: Reference, where: Endpoint, tries: Tries) -> tuple[Descriptor, bytes]:
        if "pull" in where.capabilities:
            return await self._manifests.fetch(reference, where, tries)
        # It may say what a tag means, and others may have it.
        found = await self._manifests.resolve(reference, where, tries)
        return await self.manifest(Reference(reference.host, reference.repository, digest=found.digest))
