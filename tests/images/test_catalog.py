"""The catalogue: claims about digests, their sources, and what survives a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imgfs.database.database import Database
from imgfs.errors import NoSpace
from imgfs.images.catalog import SCHEMA, Catalog
from imgfs.oci.descriptor import OCI_CONFIG, OCI_LAYER, SIZE_MAX, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source

A, B, C = Digest.of(b"a"), Digest.of(b"b", "sha512"), Digest.of(b"c")
HERE, THERE = Source("h.io", "team/x"), Source("a.io", "y")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imgfs.db", [SCHEMA])
    yield opened
    opened.close()


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


async def test_an_unmentioned_digest_is_unknown(catalog: Catalog) -> None:
    assert await catalog.descriptor(A) is None
    assert await catalog.diff_id(A) is None
    assert await catalog.sources(A) == []


async def test_every_descriptor_is_recorded_for_every_source(catalog: Catalog, database: Database) -> None:
    found = [Descriptor(A, 5, OCI_CONFIG), Descriptor(B, SIZE_MAX, OCI_LAYER)]
    await catalog.add(found, [HERE, THERE])
    for opened in (catalog, Catalog(database)):
        assert [await opened.descriptor(one.digest) for one in found] == found
        assert await opened.sources(A) == await opened.sources(B) == [THERE, HERE]


async def test_sources_add_up(catalog: Catalog) -> None:
    for source in (HERE, HERE, THERE):
        await catalog.add([Descriptor(A, 5, OCI_CONFIG)], [source])
    assert await catalog.sources(A) == [THERE, HERE]
    assert str(HERE) == "h.io/team/x"


async def test_a_source_may_be_known_before_the_size(catalog: Catalog) -> None:
    await catalog.add_source(A, HERE)
    await catalog.add_source(A, HERE)
    assert await catalog.descriptor(A) is None
    assert await catalog.sources(A) == [HERE]


async def test_a_name_alone_does_not_make_a_digest_fetchable(catalog: Catalog) -> None:
    await catalog.add_source(A, HERE)
    assert await catalog.fetchable([A, B]) == set()
    await catalog.add([Descriptor(A, 5, OCI_CONFIG)], [HERE])
    assert await catalog.fetchable([A, B]) == {A}


async def test_adding_without_sources_or_without_descriptors_is_fine(catalog: Catalog) -> None:
    await catalog.add([Descriptor(A, 5, OCI_CONFIG)], [])
    await catalog.add([], [HERE])
    assert await catalog.descriptor(A) == Descriptor(A, 5, OCI_CONFIG)
    assert await catalog.sources(A) == []


async def test_the_last_proof_of_a_diff_id_counts(catalog: Catalog, database: Database) -> None:
    blob = Descriptor(A, 5, OCI_LAYER)
    await catalog.prove_diff_id(blob, B)
    await catalog.prove_diff_id(blob, A)
    assert await catalog.diff_id(A) == await Catalog(database).diff_id(A) == A


async def test_proofs_at_the_same_time_share_transactions(catalog: Catalog, database: Database) -> None:
    blobs = [Digest.of(b"%d" % number) for number in range(40)]
    before = database.version
    async with trio.open_nursery() as nursery:
        for blob in blobs:
            nursery.start_soon(catalog.prove_diff_id, Descriptor(blob, 5, OCI_LAYER), B)
    assert database.version - before <= 2, "one for the first, one for those that came while that was written"
    assert await catalog.unpacked(blobs) == dict.fromkeys(blobs, B)


async def test_proofs_that_cannot_be_written_fail_for_every_waiter(
    catalog: Catalog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[NoSpace] = []

    async def full(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise NoSpace("the disk is full")

    async def prove(digest: Digest) -> None:
        try:
            await catalog.prove_diff_id(Descriptor(digest, 5, OCI_LAYER), B)
        except NoSpace as error:
            failed.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", full)
        async with trio.open_nursery() as nursery:
            for digest in (A, B, C):
                nursery.start_soon(prove, digest)
    assert len({id(error) for error in failed}) == 3
    await prove(A)
    assert await catalog.diff_id(A) == B


async def test_a_proven_descriptor_overrides_earlier_and_later_claims(catalog: Catalog) -> None:
    lie, truth = Descriptor(A, 6, OCI_CONFIG), Descriptor(A, 5, OCI_LAYER)
    await catalog.add([lie], [HERE])
    await catalog.add([], [THERE], truth)
    await catalog.add([lie], [])
    assert await catalog.descriptor(A) == truth
    assert await catalog.sources(A) == [THERE, HERE]
    other = Descriptor(B, 7, OCI_LAYER)
    await catalog.add([Descriptor(B, 8, OCI_LAYER)], [])
    await catalog.prove_diff_id(other, A)
    assert await catalog.descriptor(B) == other
