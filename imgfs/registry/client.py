"""The door to registries: manifests and blobs by name, verified as far as their bytes are held here."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from imgfs.errors import Invalid, TooLarge, VerificationFailed
from imgfs.oci.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest, is_digest
from imgfs.oci.reference import Reference
from imgfs.registry.blob import BlobStream, Span
from imgfs.registry.body import drain, read_all, refuse_kind
from imgfs.registry.call import Call
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts import endpoint
from imgfs.registry.limits import Limits
from imgfs.registry.retry import Sleep
from imgfs.registry.statistics import Statistics

if TYPE_CHECKING:
    from imgfs.registry.transport import Answer

_ACCEPT = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))
_DOCUMENTS = frozenset({OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, *DOCKER_SCHEMA1})
_UNSAID = frozenset({"", "application/json", "application/octet-stream"})
"""Content types of registries that do not say what they send; the document says it itself."""


class Registry:
    """Every registry there is. One a daemon, inside trio: `async with Registry() as registry`.

    `plain_http` names hosts (`host:port`, or `host` for every port) that are spoken to without TLS, besides loopback.
    `sleep` does the waiting between tries, `ssl_context` replaces the system's certificates. `credentials` are shown to
    registries that ask for a login; without them access is anonymous.

    No ping comes first: an open registry sees one request a call, one with tokens two more for the first call to each
    repository; the ping comes where a registry refuses without asking for the login that there is. Every method raises,
    besides its own: NotFound (the registry's own 404 and nothing else), AccessDenied, RateLimited, RegistryFailed,
    Unreachable, TimedOut, TooLarge, Malformed (an answer that is no registry's), Invalid (no host). Messages hold no
    login, no token and no query of a URL. Each call ends within two minutes without progress, and
    can be cancelled at any time: that closes its connection and leaves the other calls alone.
    """

    def __init__(
        self,
        *,
        limits: Limits = Limits(),  # noqa: B008 - an immutable value
        plain_http: Collection[str] = (),
        sleep: Sleep = trio.sleep,
        ssl_context: ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._plain_http = frozenset(plain_http)
        self._limits = limits
        self._exchange = Exchange(limits, sleep, ssl_context, credentials, self._plain_http)
        self._streams: dict[str, trio.Semaphore] = {}

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exchange.aclose()

    def warm(self) -> None:
        """Import and create what is slow (httpx, the TLS context). Call it in a thread before the first request."""
        self._exchange.wire().context()

    def statistics(self) -> Statistics:
        """The counters so far."""
        return Statistics({host: counters.copy() for host, counters in self._exchange.counters.items()})

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask what `reference` stands for: one HEAD, and a GET only if its answer lacks a digest, size or type.

        The registry's word: the bytes are not seen. Raises VerificationFailed if it names another digest than asked.
        Source: distribution-spec, "Checking if content exists in the registry".
        """
        call = self._manifest_call(reference, "HEAD")
        answer = await self._exchange.open(call, self._exchange.tries(call.host))
        await drain(answer)
        digest = answer.headers.get("docker-content-digest", "")
        media_type = content_type(answer.headers.get("content-type", ""))
        encoded = answer.headers.get("content-encoding", "identity") != "identity"
        if answer.length is None or encoded or not is_digest(digest) or media_type not in _DOCUMENTS:
            return (await self.manifest(reference))[0]
        if answer.length > self._limits.manifest:
            raise TooLarge(f"{reference}: manifest of {answer.length} bytes, the limit is {self._limits.manifest}")
        self._check_digest(reference, Digest(digest), reference.digest)
        return Descriptor(Digest(digest), answer.length, media_type)

    async def manifest(self, reference: Reference) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index that `reference` names, in one request: its descriptor and exact bytes.

        The bytes are verified against the reference's digest, else against the digest the registry states, if any:
        raises VerificationFailed. Raises TooLarge above the limit, without reading on, and Malformed for a
        Content-Type that no document has. Whether they parse is the caller's. Source: distribution-spec, "Pulling
        manifests".
        """
        call = self._manifest_call(reference, "GET")
        return await self._exchange.fetch(call, lambda answer: self._read_document(reference, answer))

    def blob(
        self, host: str, repository: str, descriptor: Descriptor, offset: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream the raw bytes of a blob from `offset` to `end` (by default its size): exactly these, in order.

        Entering sends the request, so refusals are raised there; an empty range sends none. A broken or stalled body
        is resumed where it broke. **The digest is not verified here**: the consumer hashes. Raises VerificationFailed
        for a length or a Content-Range other than the descriptor's, before the last byte is handed out. Leaving the
        context closes the connection without draining it; after the last byte it is kept for the next call. At most
        `limits.streams` of a host are open at a time, others wait on entering. Source: distribution-spec, "Pulling
        blobs".
        """
        span = Span(offset, descriptor.size if end is None else end, descriptor.size)
        if not 0 <= span.start <= span.end <= span.size:
            raise Invalid(f"blob {descriptor.digest}: bytes {offset} to {end} are not within its {descriptor.size}")
        where = endpoint(host, self._plain_http)
        call = Call(
            "blob",
            where,
            repository,
            where.url(repository, "blobs", descriptor.digest),
            f"{host}/{repository}@{descriptor.digest}",
            expects=frozenset({200, 206, 416}),
        )
        return self._stream(call, span, descriptor.media_type)

    @asynccontextmanager
    async def _stream(self, call: Call, span: Span, media_type: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        gate = self._streams.setdefault(call.host, trio.Semaphore(self._limits.streams))
        async with gate:
            stream = BlobStream(self._exchange, call, span, media_type)
            try:
                await stream.open()
                yield stream
            finally:
                await stream.aclose()

    def _manifest_call(self, reference: Reference, method: str) -> Call:
        where = endpoint(reference.host, self._plain_http)
        url = where.url(reference.repository, "manifests", reference.selector)
        kind = "tag" if method == "HEAD" else "manifest"
        return Call(kind, where, reference.repository, url, str(reference), method, {"Accept": _ACCEPT})

    async def _read_document(self, reference: Reference, answer: Answer) -> tuple[Descriptor, bytes]:
        media_type = content_type(answer.headers.get("content-type", ""))
        if media_type not in _DOCUMENTS | _UNSAID:
            raise await refuse_kind(answer, str(reference))
        data = await read_all(answer, self._limits.manifest, str(reference))
        stated = answer.headers.get("docker-content-digest", "")
        expected = reference.digest or (Digest(stated) if is_digest(stated) else None)
        digest = Digest.of(data, expected.algorithm if expected else "sha256")
        self._check_digest(reference, digest, expected)
        return Descriptor(digest, len(data), media_type if media_type in _DOCUMENTS else ""), data

    def _check_digest(self, reference: Reference, got: Digest, expected: Digest | None) -> None:
        if expected is not None and got != expected:
            raise VerificationFailed(
                f"{reference}: registry {reference.host} answered with {got}, expected {expected}; refused, "
                "try again later or pull from another registry"
            )


def content_type(value: str) -> str:
    """A Content-Type without its parameters, in lower case."""
    return value.partition(";")[0].strip().lower()
