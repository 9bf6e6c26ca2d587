"""Where a digest can be had, tried in order, and which failures are worth another try."""

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
    """Call `fetch` with each place of `digest` until one succeeds, those of the image that asks (`own`) first.

    Other places learn of the digest only when the image's own fail. Wrong bytes are asked for once more, at the next
    place first, and at each place as often as there is another host to ask. Raises NotFound if no place is known or all
    of them say so, else the failure that tells most.
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
    """Whom to ask, one after the other; `failures` are those of who was asked."""
    asked = list(dict.fromkeys(own))
    for source in asked:
        yield source
    # Read only now: of many small blobs, most come from where they should.
    others = [source for source in await catalog.sources(digest) if source not in asked]
    for source in others:
        yield source
    if any(isinstance(one, VerificationFailed) for one in failures):
        yield [*asked, *others][0]


async def _of_any_host(source: Source, fetch: Callable[[Source], Awaitable[T]]) -> T:
    """`fetch`, again for each host of the registry that sends wrong bytes, which leaves it for the others."""
    while True:
        try:
            return await fetch(source)
        except SenderLeft:
            continue


class Wanted(NamedTuple):
    """What a fetch is shared by: the same bytes, promised alike, from the same registries.

    Not the digest alone: an image that lies, or whose registry is dead, must not pass its failure on to others.
    """

    digest: Digest
    size: int
    media_type: str
    hosts: frozenset[str]


def wanted(descriptor: Descriptor, own: tuple[Source, ...]) -> Wanted:
    """What is wanted of `descriptor` by an image with the places `own`; by whoever takes it from anywhere, of none."""
    return Wanted(descriptor.digest, descriptor.size, descriptor.media_type, hosts_of(own))


def hosts_of(places: tuple[Source, ...]) -> frozenset[str]:
    """The registries of `places`: who asks for the same bytes there may share a fetch."""
    return frozenset(place.host for place in places)


def _weight(error: ImgfsError) -> int:
    return next((n for n, kind in enumerate(_BY_WEIGHT) if isinstance(error, kind)), len(_BY_WEIGHT))
