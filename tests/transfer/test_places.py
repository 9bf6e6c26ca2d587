"""Locations of a digest: tried in order, wrong bytes once more, and the most informative failure is raised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from imgfs.database.database import Database
from imgfs.errors import (
    AccessDenied,
    ImgfsError,
    Malformed,
    NoSpace,
    NotFound,
    RateLimited,
    RegistryFailed,
    TooLarge,
    Unreachable,
    VerificationFailed,
)
from imgfs.images.catalog import SCHEMA, Catalog
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.transfer.locations import try_each

DIGEST = Digest.of(b"x")
SOURCES = [Source(host, "r") for host in ("a.io", "b.io", "c.io")]


class Places:
    """The answers of each location, call by call. The last answer repeats."""

    def __init__(self, catalog: Catalog, *answers: ImgfsError | str | list[ImgfsError | str]) -> None:
        self.catalog = catalog
        self.answers = [answer if isinstance(answer, list) else [answer] for answer in answers]
        self.asked: list[str] = []

    async def fetch(self, source: Source) -> str:
        await trio.lowlevel.checkpoint()
        self.asked.append(source.host[0])
        answers = self.answers[SOURCES.index(source)]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ImgfsError):
            raise answer
        return answer

    async def attempt(self) -> str | type[ImgfsError]:
        for source in SOURCES[: len(self.answers)]:
            await self.catalog.add_source(DIGEST, source)
        try:
            return await try_each(self.catalog, DIGEST, self.fetch)
        except ImgfsError as error:
            return type(error)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    database = Database(tmp_path / "imgfs.db", [SCHEMA])
    yield Catalog(database)
    database.close()


GONE, DOWN, BAD, BUSY, SHUT, SICK = (
    NotFound("gone"),
    Unreachable("down"),
    VerificationFailed("bad"),
    RateLimited("busy"),
    AccessDenied("shut"),
    RegistryFailed("sick"),
)


@pytest.mark.parametrize(
    ("answers", "outcome", "asked"),
    [
        (["yes", "no"], "yes", "a"),
        ([GONE, "yes"], "yes", "ab"),
        ([DOWN, GONE, "yes"], "yes", "abc"),
        ([GONE, GONE], NotFound, "ab"),
        ([GONE], NotFound, "a"),
        ([GONE, DOWN, GONE], Unreachable, "abc"),
        ([DOWN, SHUT], AccessDenied, "ab"),
        ([SHUT, DOWN], AccessDenied, "ab"),
        ([SICK, BUSY], RateLimited, "ab"),
        ([BUSY, SHUT], AccessDenied, "ab"),
        ([[BAD, "yes"]], "yes", "aa"),
        ([BAD], VerificationFailed, "aa"),
        ([[BAD, "late"], "yes"], "yes", "ab"),
        ([[BAD, "yes"], GONE], "yes", "aba"),
        ([BAD, SHUT, DOWN], VerificationFailed, "abca"),
        ([GONE, BAD, GONE], VerificationFailed, "abca"),
    ],
)
async def test_places_are_tried_in_order_until_one_has_it(
    catalog: Catalog, answers: list[ImgfsError | str | list[ImgfsError | str]], outcome: object, asked: str
) -> None:
    places = Places(catalog, *answers)
    assert await places.attempt() == outcome
    assert "".join(places.asked) == asked


@pytest.mark.parametrize("error", [NoSpace("full"), Malformed("tar"), TooLarge("bomb")])
async def test_what_no_other_place_can_better_ends_the_search(catalog: Catalog, error: ImgfsError) -> None:
    places = Places(catalog, error, "yes")
    assert await places.attempt() is type(error)
    assert places.asked == ["a"]


async def test_without_a_place_nobody_is_asked(catalog: Catalog) -> None:
    places = Places(catalog)
    with pytest.raises(NotFound, match="no known image says where"):
        await try_each(catalog, DIGEST, places.fetch)
    assert places.asked == []
