"""Stored blobs as bodies of requests."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from imgfs.content.store import ContentStore
from imgfs.errors import NotFound, StorageFailed
from imgfs.oci.digest import Digest
from imgfs.oci.reference import Source
from imgfs.registry.http.request import Outgoing
from imgfs.transfer.push.progress import PushProgress
from imgfs.transfer.push.stored_blob import PIECE, opened
from imgfs.transfer.transfers import Direction, Transfer, Transfers

DATA = random.Random(3).randbytes(3 * PIECE + 17)


@pytest.fixture
async def content(tmp_path: Path) -> ContentStore:
    store = ContentStore(tmp_path)
    await store.add(Digest.of(DATA), DATA)
    return store


async def sent(outgoing: Outgoing) -> bytes:
    return b"".join([piece async for piece in outgoing.pieces()])


@pytest.mark.parametrize(
    ("start", "end"), [(0, len(DATA)), (0, 0), (5, 6), (PIECE - 1, PIECE + 1), (PIECE, len(DATA)), (len(DATA),) * 2]
)
async def test_a_span_is_sent_exactly_as_often_as_it_is_asked_for(content: ContentStore, start: int, end: int) -> None:
    told: list[int] = []
    with opened(content, Digest.of(DATA), told.append) as blob:
        outgoing = blob.read(start, end)
        assert outgoing.length == end - start
        for _ in range(2):
            assert await sent(outgoing) == DATA[start:end]
    assert sum(told) == 2 * (end - start)
    assert max(told, default=0) <= PIECE


async def test_it_is_read_to_its_end_also_when_it_is_removed(content: ContentStore) -> None:
    with opened(content, Digest.of(DATA)) as blob:
        await content.delete(Digest.of(DATA))
        assert await sent(blob.read(0, len(DATA))) == DATA
    with pytest.raises(NotFound), opened(content, Digest.of(DATA)):
        pass


async def test_what_is_cut_short_on_disk_fails(content: ContentStore) -> None:
    os.truncate(content.path(Digest.of(DATA)), PIECE)
    with opened(content, Digest.of(DATA)) as blob, pytest.raises(StorageFailed, match="cut short"):
        await sent(blob.read(0, len(DATA)))


async def test_damage_is_found(content: ContentStore) -> None:
    path = content.path(Digest.of(DATA))
    with opened(content, Digest.of(DATA)) as blob:
        assert await blob.is_sound()
        path.chmod(0o600)
        path.write_bytes(DATA[:-1] + b"x")
        assert not await blob.is_sound()


def test_progress_is_of_what_this_push_wants() -> None:
    transfers, first, second, other = Transfers(), *(Digest.of(mark) for mark in (b"1", b"2", b"3"))
    progress = PushProgress(transfers, Source("r.test", "a"))
    progress.want(first, 100)
    progress.want(second, 100)
    progress.arrived(first)

    def begin(digest: Digest, repository: str, direction: Direction = "push") -> AbstractContextManager[Transfer]:
        return transfers.begin(direction=direction, digest=digest, total=100, place=Source("r.test", repository))

    with (
        begin(second, "a") as one,
        begin(second, "b") as two,
        begin(other, "a") as three,
        begin(second, "a", "pull") as four,
    ):
        one.advance(30)
        two.advance(70)
        three.advance(9)
        four.advance(5)
        assert (progress.tell().total, progress.tell().done, progress.tell().running) == (200, 130, 1)
        one.at(10)
        assert progress.tell().done == 110
    assert (progress.tell().done, progress.tell().running) == (100, 0)
