"""Lists of a registry: tags, repositories and referrers, read page by page to the last one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from imgfs.aio.threads import run_cpu
from imgfs.errors import Malformed, NotFound, RegistryFailed, TooLarge, Unsupported
from imgfs.oci.descriptor import INDEX_TYPES, OCI_INDEX, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, check_depth, parse_document
from imgfs.oci.reference import Reference, is_repository, is_tag
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint, check_url, origin
from imgfs.registry.http.body import drain, read_all, refuse_kind
from imgfs.registry.retry import Tries

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

PAGE = 1000
"""Entries to request in one page. A registry may return fewer."""
JSON_TYPES = frozenset({"", "application/json", "application/octet-stream"})
NO_SUCH_API = frozenset({405, 501})
"""Statuses, besides 404, with which registries answer requests for an API that they lack."""
_EXPECTED = frozenset({200}) | NO_SUCH_API
REFERRERS_MAX = 10_000
NAMES_MAX = 200_000
Ask = Callable[[str, str, Callable[[Endpoint, Tries], Awaitable[list[bytes]]]], Awaitable[list[bytes]]]
"""Asks the hosts of a registry that have a capability, one after another. Arguments: registry, capability, question."""
Manifest = Callable[[Reference], Awaitable[tuple[Descriptor, bytes]]]


@dataclass(frozen=True, slots=True)
class Page:
    """The bytes of a page, and the URL of the next page ("" for none)."""

    data: bytes
    next: str


async def read_pages(exchange: Exchange, call: Call, types: Collection[str], tries: Tries) -> list[bytes]:
    """Return all pages of the list that `call` begins, in order. Each must have one of the content `types`.

    Raises RegistryFailed for a Link to another host or to an earlier page, TooLarge above the limits of pages and of
    total bytes, Malformed for another content type, and NotFound if there is no such list. Source:
    distribution-spec, "Listing Tags" and "Listing Referrers".
    """
    limits = exchange.limits
    pages: list[bytes] = []
    seen: set[str] = set()
    left, url = limits.listing, call.url
    while url:
        if url in seen:
            raise RegistryFailed(
                f"{call.subject}: the pages of registry {call.host} lead in a circle; tell its operator"
            )
        if len(seen) == limits.pages:
            raise TooLarge(f"{call.subject}: registry {call.host} has more than {limits.pages} pages, the limit")
        seen.add(url)
        try:
            page = await _read_page(exchange, replace(call, url=url), types, min(left, limits.manifest), tries)
        except NotFound as error:
            if not pages:
                raise
            raise RegistryFailed(f"{error.message}: page {len(seen)}, which the one before leads to") from None
        tries.completed()
        pages.append(page.data)
        left -= len(page.data)
        url = page.next
    return pages


async def _read_page(exchange: Exchange, call: Call, types: Collection[str], limit: int, tries: Tries) -> Page:
    async def read(answer: Answer) -> Page:
        if answer.status in NO_SUCH_API:
            await drain(answer)
            raise NotFound(f"{call.subject}: registry {call.host} answered {answer.status}; it has no such list")
        if answer.media_type not in types:
            raise await refuse_kind(answer, call.subject)
        data = await read_all(answer, limit, call.subject)
        link = next_link(answer.headers.get("link", ""))
        return Page(data, following_url(call.endpoint, call.url, link, call.subject) if link else "")

    return await exchange.fetch(call, read, tries)


def next_link(header: str) -> str:
    """Return the target of the link with `rel="next"` in a Link header (RFC 8288), or ""."""
    for part in header.split("<")[1:]:
        target, _, parameters = part.partition(">")
        for parameter in parameters.split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "rel" and "next" in value.strip(' ,"').lower().split():
                return target
    return ""


def following_url(endpoint: Endpoint, before: str, link: str, what: str) -> str:
    """Return the URL of the page to which `link`, found at `before`, leads. Raises RegistryFailed for another host.

    A registry behind a proxy may write http instead of https; the scheme of the endpoint is kept. The URL of a mirror
    gets its `ns` parameter again.
    """
    what = f"{what}: next page of registry {endpoint.host}"
    try:
        joined = urljoin(before, link)
        authority = urlsplit(joined).netloc.lower()
    except ValueError:
        joined = authority = ""
    if authority == endpoint.authority.lower():
        joined = urlsplit(joined)._replace(scheme=endpoint.scheme).geturl()
    url = check_url(joined, before, what)
    if origin(url) != origin(endpoint.base):
        raise RegistryFailed(f"{what}: leads to {authority}, which is not followed; report it to its operator")
    if endpoint.ns and "ns=" not in urlsplit(url).query:
        url = with_query(url, ns=endpoint.ns)
    return url


def with_query(url: str, **values: str | int) -> str:
    """Return `url` with these values appended to its query."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"


class _Names(msgspec.Struct):
    tags: list[str] | None = None
    repositories: list[str] | None = None


class Lists:
    """Reads whole lists, within the limits. `ask` selects the hosts; `manifest` fetches a manifest by reference."""

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
        """Return the fallback index, which clients that find no referrers API maintain; empty if there is none."""
        try:
            return [(await self._manifest(reference))[1]]
        except NotFound:
            return []


def fallback_tag(subject: Digest) -> str:
    """Return the tag of the index that replaces the referrers API (distribution-spec, "Referrers Tag Schema")."""
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
    """Return the distinct names on the pages. A malformed name is left out, because it cannot be requested."""
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
