"""Lists that registries give out page by page: where the next page is, and when to stop asking.

What a page says is the caller's business.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from imgfs.errors import NotFound, RegistryFailed, TooLarge
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange
from imgfs.registry.hosts.endpoint import Endpoint, check_url, origin
from imgfs.registry.http.body import drain, read_all, refuse_kind
from imgfs.registry.retry import Tries

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

PAGE = 1000
"""Entries to ask for in one page; registries give fewer if they want."""
JSON_TYPES = frozenset({"", "application/json", "application/octet-stream"})
NO_SUCH_API = frozenset({405, 501})
"""What registries answer to what they do not know, besides 404."""


@dataclass(frozen=True, slots=True)
class Page:
    """The bytes of a page, and the URL of the one behind it ("" for none)."""

    data: bytes
    next: str


async def read_pages(exchange: Exchange, call: Call, types: Collection[str], tries: Tries) -> list[bytes]:
    """Every page of the list that `call` begins, of one of the content `types`, in order.

    Raises RegistryFailed for a Link to another host or to a page that was there before, TooLarge over the limits of
    pages and of bytes in all, Malformed for another type, NotFound where there is no such list. Source:
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
    """The target of the link with `rel="next"` in a Link header (RFC 8288), or ""."""
    for part in header.split("<")[1:]:
        target, _, parameters = part.partition(">")
        for parameter in parameters.split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "rel" and "next" in value.strip(' ,"').lower().split():
                return target
    return ""


def following_url(endpoint: Endpoint, before: str, link: str, what: str) -> str:
    """The URL of the page that `link`, found at `before`, leads to; raises RegistryFailed for another host.

    A registry behind a proxy may take itself for one without TLS: it is asked the way it was before. A mirror is told
    again whose list it is.
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
    """`url` with these values behind what its query has."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"
