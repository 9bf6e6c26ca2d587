"""What a registry lists: referrers of an image, tags of a repository, repositories. Its word, unverified."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable

import msgspec

from imgfs.aio.threads import run_cpu
from imgfs.errors import Malformed, NotFound, TooLarge, Unsupported
from imgfs.oci.descriptor import INDEX_TYPES, OCI_INDEX, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, check_depth, parse_document
from imgfs.oci.reference import Reference, is_repository, is_tag
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.paging import JSON_TYPES, NO_SUCH_API, PAGE, read_pages, with_query
from imgfs.registry.retry import Tries

REFERRERS_MAX = 10_000
NAMES_MAX = 200_000
Ask = Callable[[str, str, Callable[[Endpoint, Tries], Awaitable[list[bytes]]]], Awaitable[list[bytes]]]
"""Ask the hosts of a registry that have a capability, in turn: registry, capability, question."""
Manifest = Callable[[Reference], Awaitable[tuple[Descriptor, bytes]]]


class _Names(msgspec.Struct):
    tags: list[str] | None = None
    repositories: list[str] | None = None


class Lists:
    """Reads lists to their end, within bounds. `ask` chooses the hosts, `manifest` fetches a document by its name."""

    def __init__(self, exchange: Exchange, ask: Ask, manifest: Manifest) -> None:
        self._exchange = exchange
        self._ask = ask
        self._manifest = manifest

    async def referrers(self, host: str, repository: str, subject: Digest, artifact_type: str) -> list[Descriptor]:
        """See Registry.referrers."""
        what = f"referrers of {host}/{repository}@{subject}"

        def call(where: Endpoint) -> Call:
            url = where.url(repository, "referrers", subject)
            if artifact_type:
                url = with_query(url, artifactType=artifact_type)
            return Call("referrers", where, repository, url, what, headers={"Accept": OCI_INDEX}, expects=_EXPECTED)

        try:
            pages = await self._pages(host, "referrers", call, INDEX_TYPES | JSON_TYPES)
        except NotFound:
            pages = await self._tagged(Reference(host, repository, fallback_tag(subject)))
        found = await run_cpu(_referrers, pages, what)
        return [one for one in found if not artifact_type or one.artifact_type == artifact_type]

    async def tags(self, host: str, repository: str) -> list[str]:
        """See Registry.tags."""
        what = f"tags of {host}/{repository}"

        def call(where: Endpoint) -> Call:
            url = with_query(where.url(repository, "tags", "list"), n=PAGE)
            return Call("tags", where, repository, url, what, expects=_EXPECTED)

        pages = await self._pages(host, "resolve", call, JSON_TYPES)
        return await run_cpu(_tags, pages, what)

    async def repositories(self, host: str) -> list[str]:
        """See Registry.repositories."""
        what = f"repositories of {host}"

        def call(where: Endpoint) -> Call:
            url = with_query(f"{where.base}{where.path}/_catalog", n=PAGE)
            return Call("catalog", where, "", url, what, expects=_EXPECTED, access="*")

        pages = await self._pages(host, "catalog", call, JSON_TYPES)
        return await run_cpu(_repositories, pages, what)

    async def _pages(
        self, host: str, capability: str, call: Callable[[Endpoint], Call], types: Collection[str]
    ) -> list[bytes]:
        async def question(where: Endpoint, tries: Tries) -> list[bytes]:
            return await read_pages(self._exchange, call(where), types, tries)

        return await self._ask(host, capability, question)

    async def _tagged(self, reference: Reference) -> list[bytes]:
        """The index that those push who find no referrers API; nobody did where there is none."""
        try:
            return [(await self._manifest(reference))[1]]
        except NotFound:
            return []


_EXPECTED = frozenset({200}) | NO_SUCH_API


def fallback_tag(subject: Digest) -> str:
    """The tag of the index that stands in for the referrers API (distribution-spec, "Referrers Tag Schema")."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def _referrers(pages: list[bytes], what: str) -> list[Descriptor]:
    found: dict[Digest, Descriptor] = {}
    for page in pages:
        try:
            document = parse_document(page)
        except (Malformed, Unsupported, TooLarge) as error:
            raise type(error)(f"{what}: {error.message}") from None
        if not isinstance(document, ImageIndex):
            raise Malformed(f"{what}: the registry answered with a manifest, expected an index; tell its operator")
        found |= {one.digest: one for one in document.manifests if one.digest not in found}
        if len(found) > REFERRERS_MAX:
            raise TooLarge(f"{what}: more than {REFERRERS_MAX}, the limit; ask for one artifact type")
    return list(found.values())


def _tags(pages: list[bytes], what: str) -> list[str]:
    return _names((_decode(page, what).tags for page in pages), is_tag, what)


def _repositories(pages: list[bytes], what: str) -> list[str]:
    return _names((_decode(page, what).repositories for page in pages), is_repository, what)


def _names(pages: Iterable[list[str] | None], is_name: Callable[[str], bool], what: str) -> list[str]:
    """The names on the pages, each once. What is no name cannot be asked for, so it is left out."""
    found: dict[str, None] = {}
    for page in pages:
        found |= dict.fromkeys(filter(is_name, page or []))
        if len(found) > NAMES_MAX:
            raise TooLarge(f"{what}: more than {NAMES_MAX}, the limit")
    return list(found)


def _decode(page: bytes, what: str) -> _Names:
    check_depth(page, what)
    try:
        return msgspec.json.decode(page, type=_Names)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{what}: {error}; is this host a registry?") from None
