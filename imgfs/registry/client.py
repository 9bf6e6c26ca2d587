"""The registry client: manifests, blobs, lists and pushes, with mirrors, logins and retries.

Documents are verified here. Blobs are streamed, so their consumer verifies them.
"""

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
from imgfs.registry.blob import BlobRange, BlobStream
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint, endpoint
from imgfs.registry.hosts.health import Senders
from imgfs.registry.hosts.hosts_toml import HostDirectories
from imgfs.registry.hosts.turns import FAULTS, Turns
from imgfs.registry.limits import Limits
from imgfs.registry.lists import Lists
from imgfs.registry.manifests import Manifests
from imgfs.registry.push.destination import Destination, Gates
from imgfs.registry.push.sessions import Sessions
from imgfs.registry.retry import FailureCallback, Sleep, Tries, ignore_failure
from imgfs.registry.statistics import Statistics

T = TypeVar("T")


class Registry:
    """A client for all registries. A daemon has one: `async with Registry() as registry`.

    `plain_http` names hosts (`host:port`, or `host` for all ports) that are used without TLS, in addition to loopback.
    `hosts_path` are directories with mirrors, certificates and headers for each registry (`hosts.toml`). The client
    asks the mirrors of a registry in order, then the registry; a call ends at the first host that succeeds. `sleep`
    waits between attempts. `ssl_context` replaces the system's certificates. `credentials` are shown to registries that
    ask for a login; without them access is anonymous. With a `database` that has the table of `push.sessions`,
    interrupted uploads continue after a restart.

    The client sends no ping first. A call to an open registry is one request. With tokens, the first call to each
    repository costs two more. A ping is sent only if a registry refuses without asking for an available login. Every
    method raises, in addition to its own errors: NotFound (only for a 404 of the registry itself), AccessDenied,
    RateLimited, RegistryFailed, Unreachable, TimedOut, TooLarge, Malformed (the answer is not from a registry) and
    Invalid (not a host). Messages contain no login, no token and no query of a URL. Without progress each call ends
    within two minutes. Cancelling a call closes its connection and does not affect other calls.
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
        """Import httpx and IDNA and create the TLS context, which is slow. Call it in a thread before any request."""
        self._exchange.transport().warm()
        "".encode("idna")

    def statistics(self) -> Statistics:
        """Return a snapshot of the counters."""
        return Statistics({host: counters.copy() for host, counters in self._exchange.counters.items()})

    async def resolve(self, reference: Reference) -> Descriptor:
        """Return the descriptor of `reference`: one HEAD, and a GET only if its answer lacks a digest, size or type.

        The answer is the registry's statement; the bytes are not verified. Raises VerificationFailed if the registry
        states another digest than that of `reference`.
        Source: distribution-spec, "Checking if content exists in the registry".
        """
        turns = await self._turns(reference.host, "resolve", reference)
        return await self._each(turns, lambda where, tries: self._manifests.resolve(reference, where, tries))

    async def manifest(self, reference: Reference) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index that `reference` names, in one request: its descriptor and exact bytes.

        The bytes are verified against the digest of the reference, or else against the digest that the registry states,
        if it states one. The caller parses the bytes. Raises VerificationFailed if the digest differs, TooLarge above
        the limit without reading the rest, Unsupported for the Content-Type of another kind of document, and Malformed
        for a Content-Type that no document has. Source: distribution-spec, "Pulling manifests".
        """
        capability = "resolve" if reference.digest is None else "pull"
        turns = await self._turns(reference.host, capability, reference)
        return await self._each(turns, lambda where, tries: self._manifest(reference, where, tries))

    async def referrers(self, host: str, repository: str, subject: Digest, artifact_type: str = "") -> list[Descriptor]:
        """Return the descriptors that the registry lists as referrers of `subject`, optionally of one `artifact_type`.

        If the registry has no referrers API, the fallback tag is read. All pages are read. Raises TooLarge above the
        limits, and RegistryFailed if a page leads to another host or back to an earlier page.
        """
        return await self._lists.referrers(host, repository, subject, artifact_type)

    async def tags(self, host: str, repository: str) -> list[str]:
        """Return the tags of a repository in the registry's order. Raises as `referrers`."""
        return await self._lists.tags(host, repository)

    async def repositories(self, host: str) -> list[str]:
        """Return the catalog of a registry in its order. Many registries have none. Raises as `referrers`."""
        return await self._lists.repositories(host)

    def blob(
        self,
        host: str,
        repository: str,
        descriptor: Descriptor,
        offset: int = 0,
        end: int | None = None,
        *,
        failed: FailureCallback = ignore_failure,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream the raw bytes of a blob from `offset` to `end` (by default its size), in order and without gaps.

        Entering the context sends the request and raises refusals; an empty range sends no request. A body that breaks
        or stalls is resumed where it ended. **The consumer must verify the digest.** Raises VerificationFailed if the
        length or the Content-Range does not match the descriptor, before it returns the last byte. Leaving the context
        closes the connection without draining it; after the last byte the connection is kept. At most `limits.streams`
        streams (and `limits.short_streams` short streams) of a host are open; further ones wait on entering, and
        repositories take turns. `failed` is called with each failed attempt, also if a later one succeeds. Source:
        distribution-spec, "Pulling blobs".
        """
        wanted = BlobRange(host, repository, descriptor, offset, descriptor.size if end is None else end)
        if not 0 <= wanted.start <= wanted.end <= wanted.size:
            raise Invalid(f"blob {descriptor.digest}: bytes {offset} to {end} are not within its {descriptor.size}")
        endpoint(host)
        return self._stream(wanted, failed)

    async def destination(self, host: str, repository: str) -> Destination:
        """Return the destination of pushes to `repository` of `host`: its first host with the capability `push`.

        Raises Invalid, and RegistryFailed if there is no such host. This sends no request.
        """
        where = (await self._able(host, "push", f"{host}/{repository}"))[0]
        fresh = Gates(trio.Semaphore(self._limits.streams), trio.Semaphore(self._limits.uploads))
        gates = self._push_gates.setdefault(where.authority, fresh)
        return Destination(self._exchange, self._sessions, self._manifests, where, repository, gates)

    def blame(self, host: str, digest: Digest, error: VerificationFailed) -> VerificationFailed:
        """Report that `blob` returned wrong bytes, so that their senders are asked last for this blob for ten minutes.

        A registry without mirrors is not avoided. Returns the error to raise, which names the senders. It is SenderLeft
        if a retry would ask a host that has not sent wrong bytes yet.
        """
        return self._senders.blame(host, digest, error)

    @asynccontextmanager
    async def _stream(self, wanted: BlobRange, failed: FailureCallback) -> AsyncGenerator[AsyncIterator[bytes]]:
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
        """Return the turns of the hosts that can be asked for `what`. Raises as `_able`."""
        return self._exchange.turns(await self._able(host, capability, what), str(what))

    async def _able(self, host: str, capability: str, what: object) -> list[Endpoint]:
        """Return the hosts that have `capability`. Raises Invalid, and RegistryFailed if there are none."""
        hosts = await self._directories.find(host)
        able = [one for one in hosts if one.can(capability)]
        if not able:
            raise RegistryFailed(f"{what}: no host of {host} has the capability {capability}; check its hosts.toml")
        return able

    async def _ask(self, host: str, capability: str, ask: Callable[[Endpoint, Tries], Awaitable[T]]) -> T:
        return await self._each(await self._turns(host, capability, f"{capability} of {host}"), ask)

    async def _each(self, turns: Turns, ask: Callable[[Endpoint, Tries], Awaitable[T]]) -> T:
        """Call `ask` for one host after another, and return the result of the first that succeeds."""
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
        # This host may resolve the tag only; fetch by digest from the hosts that may pull.
        found = await self._manifests.resolve(reference, where, tries)
        return await self.manifest(Reference(reference.host, reference.repository, digest=found.digest))
