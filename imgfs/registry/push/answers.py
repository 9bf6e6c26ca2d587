"""What registries answer to uploads: where to go on, how much they have, and why not. Their word is checked here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from imgfs.errors import RegistryFailed
from imgfs.oci.digest import Digest, is_digest
from imgfs.registry.call import Call
from imgfs.registry.hosts.endpoint import check_url
from imgfs.registry.http.body import drain
from imgfs.registry.paging import with_query
from imgfs.registry.status import error_code

if TYPE_CHECKING:
    from imgfs.registry.http.answer import Answer

DONE = frozenset({200, 201, 202, 204})
NO_SUCH_METHOD = frozenset({405, 501})
JUDGED = DONE | NO_SUCH_METHOD | {400, 413, 415, 416}
"""Statuses that uploads and manifests have their own words for; others mean what they always mean."""
ENDED = DONE | NO_SUCH_METHOD | {400, 404}
"""What is answered to the wish that an upload be forgotten, where it is, or cannot be."""
_RANGE = re.compile(r"(?:bytes[= ])?0-(\d{1,19})\Z")


def last_received(answer: Answer) -> int | None:
    """The offset of the last byte that the registry says to have, by its Range header; None if it does not say."""
    found = _RANGE.match(answer.headers.get("range", "").strip())
    return int(found[1]) if found else None


def following(call: Call, answer: Answer) -> str | None:
    """The URL at which an upload goes on, by the Location header, relative or not; None if there is none.

    Raises RegistryFailed for one not to be followed: no http, or from https to http. A registry behind a proxy may
    take itself for one without TLS: it is asked the way it was before.
    """
    location = answer.headers.get("location", "")
    if not location:
        return None
    where, what = call.endpoint, f"{call.subject}: where registry {call.host} wants it"
    try:
        joined = urljoin(answer.request.url, location)
        authority = urlsplit(joined).netloc.lower()
    except ValueError:
        joined = authority = ""
    if authority == where.authority.lower():
        joined = urlsplit(joined)._replace(scheme=where.scheme).geturl()
    url = check_url(joined, answer.request.url, what)
    if where.ns and where.owns(url) and "ns=" not in urlsplit(url).query:
        url = with_query(url, ns=where.ns)
    return url


async def closed(answer: Answer) -> str:
    """Read the rest of an answer that is judged by its status, and close it; returns the registry's error code."""
    return error_code(await drain(answer))


def another_digest(answer: Answer, digest: Digest) -> Digest | None:
    """The digest that the registry has stored something under, if that is not `digest`; None where it does not say.

    One of another algorithm says nothing.
    """
    stated = answer.headers.get("docker-content-digest", "")
    if not is_digest(stated) or stated == digest or Digest(stated).algorithm != digest.algorithm:
        return None
    return Digest(stated)


def refusal(call: Call, answer: Answer, code: str) -> RegistryFailed:
    """The error for a status of JUDGED that ends a push."""
    sent = call.outgoing.length if call.outgoing is not None else 0
    said = f"{call.subject}: registry {call.host} answered {answer.status}{f' {code}' if code else ''}"
    if answer.status in NO_SUCH_METHOD or code == "UNSUPPORTED":
        advice = "push to a registry that does, or to what it mirrors"
        if call.endpoint.mirror:
            advice = f"in hosts.toml of {call.endpoint.ns} give this mirror capabilities without push"
        return RegistryFailed(f"{said} to a push: it takes none; {advice}")
    if answer.status == 413:
        return RegistryFailed(f"{said} to {sent} bytes; have its operator raise the limit of requests")
    return RegistryFailed(f"{said} to a push; check what it accepts, and try again")
