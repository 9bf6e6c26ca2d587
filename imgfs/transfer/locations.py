"""Tries the locations of a digest in order, and decides which failures are retried."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from imgfs.errors import AccessDenied, ImgfsError, NotFound, RateLimited, RemoteError, SenderLeft, VerificationFailed
from imgfs.images.catalog import Catalog
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source

T = TypeVar("T")

_BY_WEIGHT = (VerificationFailed, AccessDenied, RateLimited, RemoteError, NotFound)


async def try_each(
    catalog: Catalog, digest: Digest, fetch: Callable[[Source], Awaitable[T]], own: tuple[Source, ...] = ()
) -> T:
    """Call `fetch` with each location of `digest` until one succeeds, first those of the requesting image (`own`).

    Other locations receive a request only after the image's own ones have failed. After wrong bytes the other hosts of
    a location are tried, then the next locations, and at the end the first location once more. Raises NotFound if no
    location is known or all of them report 404, else the most informative failure.
    """
    failures: list[ImgfsError] = []
    async with aclosing(_places(catalog, digest, own, failures)) as places:
        async for source in places:
            try:
                return await _of_any_host(source, fetch)
            except (RemoteError, NotFound, VerificationFailed) as error:
                failures.append(error)
    if not failures:
        raise NotFound(f"content {digest}: is not stored here, and no known image says where it can be had")
    raise min(failures, key=_weight)


async def _places(
    catalog: Catalog, digest: Digest, own: tuple[Source, ...], failures: Sequence[ImgfsError]
) -> AsyncGenerator[Source]:
    """Yield the locations in order. `failures` are the failures of the locations so far."""
    asked = list(dict.fromkeys(own))
    for source in asked:
        yield source
    # Read only now: most blobs come from the first location, and the query would cost time for each.
    others = [source for source in await catalog.sources(digest) if source not in asked]
    for source in others:
        yield source
    if any(isinstance(one, VerificationFailed) for one in failures):
        yield [*asked, *others][0]


async def _of_any_host(source: Source, fetch: Callable[[Source], Awaitable[T]]) -> T:
    """Call `fetch`, and retry while a host of the registry that sent wrong bytes is replaced by another host."""
    while True:
        try:
            return await fetch(source)
        except SenderLeft:
            continue


class FetchKey(NamedTuple):
    """The key of shared fetches: the same blob with the same descriptor from the same registries.

    The digest alone is not the key. An image with a wrong descriptor or a dead registry must not fail other images.
    """

    digest: Digest
    size: int
    media_type: str
    hosts: frozenset[str]


def fetch_key(descriptor: Descriptor, own: tuple[Source, ...]) -> FetchKey:
    """Return the key for an image with the locations `own`; empty for a caller that accepts every location."""
    return FetchKey(descriptor.digest, descriptor.size, descriptor.media_type, hosts_of(own))


def hosts_of(places: tuple[Source, ...]) -> frozenset[str]:
    """Return the registries of `places`. Requests for the same blob at the same registries share a fetch."""
    return frozenset(place.host for place in places)


def _weight(error: ImgfsError) -> int:
    return next((n for n, kind in enumerate(_BY_WEIGHT) if isinstance(error, kind)), len(_BY_WEIGHT))
