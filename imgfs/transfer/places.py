"""Where a digest can be had, tried in order, and which failures are worth another try."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from imgfs.errors import AccessDenied, ImgfsError, NotFound, RateLimited, RemoteError, SenderLeft, VerificationFailed
from imgfs.images.catalog import Catalog, Source
from imgfs.oci.digest import Digest

T = TypeVar("T")

_BY_WEIGHT = (VerificationFailed, AccessDenied, RateLimited, RemoteError, NotFound)


async def try_each(
    catalog: Catalog, digest: Digest, fetch: Callable[[Source], Awaitable[T]], own: tuple[Source, ...] = ()
) -> T:
    """Call `fetch` with each place of `digest` until one succeeds, those of the image that asks (`own`) first.

    Other places learn of the digest only when the image's own fail. Wrong bytes are asked for once more, at the next
    place first, and at each place as often as there is another host to ask. Raises NotFound if no place is known or all
    of them say so, else the failure that tells most.
    """
    sources = list(dict.fromkeys((*own, *await catalog.sources(digest))))
    if not sources:
        raise NotFound(f"content {digest}: is not stored here, and no known image says where it can be had")
    failures: list[ImgfsError] = []
    for source in (*sources, sources[0]):
        if len(failures) == len(sources) and not any(isinstance(one, VerificationFailed) for one in failures):
            break
        try:
            return await _of_any_host(source, fetch)
        except (RemoteError, NotFound, VerificationFailed) as error:
            failures.append(error)
    raise min(failures, key=_weight)


async def _of_any_host(source: Source, fetch: Callable[[Source], Awaitable[T]]) -> T:
    """`fetch`, again for each host of the registry that sends wrong bytes, which leaves it for the others."""
    while True:
        try:
            return await fetch(source)
        except SenderLeft:
            continue


def hosts_of(places: tuple[Source, ...]) -> frozenset[str]:
    """The registries of `places`: who asks for the same bytes there may share a fetch."""
    return frozenset(place.host for place in places)


def _weight(error: ImgfsError) -> int:
    return next((n for n, kind in enumerate(_BY_WEIGHT) if isinstance(error, kind)), len(_BY_WEIGHT))
