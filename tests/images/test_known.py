"""Unknown digests cost no query, and known digests are never denied."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.database.database import Database
from imgfs.images import catalog
from imgfs.images.catalog import DIGITS, Catalog, Known
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source

A, B, C, D = (Digest.of(text) for text in (b"a", b"b", b"c", b"d"))
PLACE = Source("registry.test", "r")

T = TypeVar("T")

digests = st.sets(st.binary(max_size=8).map(Digest.of), max_size=30)


@given(digests, digests, digests)
def test_known_digests_are_never_denied(before: set[Digest], during: set[Digest], after: set[Digest]) -> None:
    known = Known()
    known.add(during)
    assert all(digest in known for digest in (A, B, C))
    known.complete(Known(digest.hex[:DIGITS] for digest in before))
    known.add(after)
    assert all(digest in known for digest in before | during | after)
    strangers = {A, B, C} - {one for one in (A, B, C) if one.hex[:DIGITS] in beginnings(before | during | after)}
    assert not any(digest in known for digest in strangers)


def beginnings(digests: set[Digest]) -> set[str]:
    return {digest.hex[:DIGITS] for digest in digests}


def test_malformed_digests_in_a_damaged_table_are_ignored() -> None:
    known = Known()
    known.complete(Known(["", "no hex", A.hex[:DIGITS]]))
    assert A in known
    assert B not in known


class Counting(Database):
    """Counts queries."""

    reads = 0

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        self.reads += 1
        return super()._query(query)


@pytest.fixture
def database(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "db", [catalog.SCHEMA])


async def test_an_unknown_digest_costs_no_query(database: Counting) -> None:
    await Catalog(database).add([Descriptor(A, 1, "")], [PLACE])
    opened = Catalog(database)
    assert await opened.descriptor(B) is None
    before = database.reads
    for _ in range(3):
        assert await opened.descriptor(B) is None
        assert await opened.proven(C) is None
    assert database.reads == before
    assert await opened.descriptor(A) == Descriptor(A, 1, "")
    assert database.reads == before + 1
    database.close()


async def test_a_digest_added_later_is_known_at_once(database: Counting) -> None:
    opened = Catalog(database)
    assert await opened.descriptor(B) is None
    await opened.add([Descriptor(A, 1, "")], [PLACE], Descriptor(B, 2, "proven"))
    await opened.prove_diff_id(Descriptor(C, 3, ""), A)
    await opened.add_source(D, PLACE)
    assert [await opened.descriptor(digest) for digest in (A, B, C, D)] == [
        Descriptor(A, 1, ""),
        Descriptor(B, 2, "proven"),
        Descriptor(C, 3, ""),
        None,
    ]
    assert await opened.proven(C) == Descriptor(C, 3, "")
    database.close()
