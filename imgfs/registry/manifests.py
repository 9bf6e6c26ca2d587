"""Manifests and indexes from one host: fetched by name, read within the limit, and verified against their digest.

The caller chooses the host and parses the document.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgfs.errors import TooLarge, Unsupported, VerificationFailed
from imgfs.oci.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest, is_digest
from imgfs.oci.reference import Reference
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.http.body import drain, read_all, refuse_kind
from imgfs.registry.retry import Tries

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

ACCEPT = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))
"""The Accept header: manifests and indexes of OCI and of Docker."""
_DOCUMENTS = frozenset({OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, *DOCKER_SCHEMA1})
_UNSAID = frozenset({"", "application/json", "application/octet-stream"})
"""Content types of registries that do not say what they send; the document says it itself."""
_OTHER_DOCUMENT = re.compile(r"application/vnd\.[^/]+\+json")
"""A media type of the vendor tree is a document of another kind. A login page or a proxy never sends one."""


class Manifests:
    """Fetches documents with `exchange`. Every method raises what `Exchange.open` raises, and VerificationFailed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def resolve(self, reference: Reference, where: Endpoint, tries: Tries) -> Descriptor:
        """Return the descriptor that `where` states for `reference`; see Registry.resolve."""
        answer = await self._exchange.open(_call("tag", "HEAD", reference, where), tries)
        await drain(answer)
        digest, limit = answer.headers.get("docker-content-digest", ""), self._exchange.limits.manifest
        encoded = answer.headers.get("content-encoding", "identity") != "identity"
        if answer.length is None or encoded or not is_digest(digest) or answer.media_type not in _DOCUMENTS:
            return (await self.fetch(reference, where, tries))[0]
        if answer.length > limit:
            raise TooLarge(f"{reference}: manifest of {answer.length} bytes, the limit is {limit}")
        _check_digest(reference, where, Digest(digest), reference.digest)
        return Descriptor(Digest(digest), answer.length, answer.media_type)

    async def fetch(self, reference: Reference, where: Endpoint, tries: Tries) -> tuple[Descriptor, bytes]:
        """Fetch the document that `reference` names from `where`; see Registry.manifest."""

        async def read(answer: Answer) -> tuple[Descriptor, bytes]:
            return await self._read(reference, where, answer)

        return await self._exchange.fetch(_call("manifest", "GET", reference, where), read, tries)

    async def _read(self, reference: Reference, where: Endpoint, answer: Answer) -> tuple[Descriptor, bytes]:
        media_type = answer.media_type
        if media_type not in _DOCUMENTS | _UNSAID:
            if _OTHER_DOCUMENT.fullmatch(media_type):
                await drain(answer)
                raise Unsupported(
                    f"{reference}: manifest of media type {media_type[:120]!r}: expected an OCI or Docker manifest or "
                    "index; push the image again as one"
                )
            raise await refuse_kind(answer, str(reference))
        data = await read_all(answer, self._exchange.limits.manifest, str(reference))
        stated = answer.headers.get("docker-content-digest", "")
        expected = reference.digest or (Digest(stated) if is_digest(stated) else None)
        digest = Digest.of(data, expected.algorithm if expected else "sha256")
        _check_digest(reference, where, digest, expected)
        return Descriptor(digest, len(data), media_type if media_type in _DOCUMENTS else ""), data


def _call(kind: str, method: str, reference: Reference, where: Endpoint) -> Call:
    url = where.url(reference.repository, "manifests", reference.selector)
    return Call(kind, where, reference.repository, url, str(reference), method, {"Accept": ACCEPT})


def _check_digest(reference: Reference, where: Endpoint, got: Digest, expected: Digest | None) -> None:
    if expected is not None and got != expected:
        raise VerificationFailed(
            f"{reference}: registry {where.host} answered with {got}, expected {expected}; refused, "
            "try again later or pull from another registry"
        )
