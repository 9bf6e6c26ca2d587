"""Downloads by imgfs itself: resumed at their end, dropped if the bytes are wrong, visible while they run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from imgfs.content.ingests.downloads import download, download_ref
from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.errors import Busy, Cancelled, TooLarge, Unreachable, VerificationFailed
from imgfs.oci.digest import Digest

DATA = b"some bytes" * 1000
DIGEST = Digest.of(DATA)
REF = download_ref(DIGEST)


class Remote:
    """A registry that serves `versions` in order, the last one repeatedly, and breaks off after `cut` bytes."""

    def __init__(self, *versions: bytes, cut: int = 1 << 30) -> None:
        self.versions = list(versions or (DATA,))
        self.cut = cut
        self.asked: list[int] = []

    def __call__(self, offset: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._open(offset)

    @asynccontextmanager
    async def _open(self, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append(offset)
        data = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        yield self._pieces(data, offset)

    async def _pieces(self, data: bytes, offset: int) -> AsyncIterator[bytes]:
        for at in range(offset, len(data), 1000):
            if at >= self.cut:
                raise Unreachable("cut")
            yield data[at : at + 1000]


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


@pytest.fixture
async def ingests(content: ContentStore, nursery: trio.Nursery) -> IngestStore:
    return IngestStore(content, nursery)


async def test_a_complete_download_is_stored(content: ContentStore, ingests: IngestStore) -> None:
    remote, moved = Remote(), list[int]()
    await download(ingests, DIGEST, len(DATA), remote, moved.append)
    assert await content.read(DIGEST) == DATA
    assert (remote.asked, sum(moved)) == ([0], len(DATA))
    await download(ingests, DIGEST, len(DATA), remote)
    assert remote.asked == [0]
    assert list(ingests) == []


async def test_a_download_resumes_at_its_end_also_after_a_restart(
    content: ContentStore, ingests: IngestStore, nursery: trio.Nursery
) -> None:
    with pytest.raises(Unreachable):
        await download(ingests, DIGEST, len(DATA), Remote(cut=4000))
    assert ingests.status(REF).offset == 4000
    remote = Remote()
    await download(IngestStore(content, nursery), DIGEST, len(DATA), remote)
    assert remote.asked == [4000]
    assert await content.read(DIGEST) == DATA


async def test_a_complete_ingest_needs_no_request(content: ContentStore, ingests: IngestStore) -> None:
    async with await ingests.open(REF) as writer:
        await writer.write(DATA)
    remote = Remote()
    await download(ingests, DIGEST, len(DATA), remote)
    assert remote.asked == []
    assert DIGEST in content


async def test_a_failure_before_the_first_byte_leaves_nothing(ingests: IngestStore) -> None:
    with pytest.raises(Unreachable):
        await download(ingests, DIGEST, len(DATA), Remote(cut=0))
    assert list(ingests) == []


@pytest.mark.parametrize("prefix", [b"", b"wrong prefix"])
async def test_wrong_bytes_leave_nothing_so_that_the_next_call_begins_at_0(
    content: ContentStore, ingests: IngestStore, prefix: bytes
) -> None:
    async with await ingests.open(REF) as writer:
        await writer.write(prefix)
    remote = Remote(b"X" * len(DATA), DATA)
    with pytest.raises(VerificationFailed):
        await download(ingests, DIGEST, len(DATA), remote)
    assert (DIGEST in content, list(ingests)) == (False, [])
    await download(ingests, DIGEST, len(DATA), remote)
    assert remote.asked == [len(prefix), 0]
    assert await content.read(DIGEST) == DATA


@pytest.mark.parametrize("wrong", [DATA[:-1], b""])
async def test_a_body_that_is_too_short_is_refused_and_leaves_nothing(
    content: ContentStore, ingests: IngestStore, wrong: bytes
) -> None:
    with pytest.raises(VerificationFailed):
        await download(ingests, DIGEST, len(DATA), Remote(wrong))
    assert (DIGEST in content, list(ingests)) == (False, [])


async def test_more_than_was_promised_is_refused_and_leaves_nothing(ingests: IngestStore) -> None:
    with pytest.raises(TooLarge):
        await download(ingests, DIGEST, len(DATA), Remote(DATA + b"x"))
    assert list(ingests) == []


async def test_bytes_beyond_a_smaller_total_are_dropped(content: ContentStore, ingests: IngestStore) -> None:
    async with await ingests.open(REF, total=10**6) as writer:
        await writer.write(DATA + b"too much")
    remote = Remote()
    await download(ingests, DIGEST, len(DATA), remote)
    assert remote.asked == [0]
    assert DIGEST in content


async def test_a_ref_with_a_writer_is_busy(ingests: IngestStore) -> None:
    async with await ingests.open(REF):
        with pytest.raises(Busy):
            await download(ingests, DIGEST, len(DATA), Remote())


async def test_removing_the_ref_ends_the_download(ingests: IngestStore) -> None:
    async def removed(offset: int) -> None:
        if REF in ingests:
            await ingests.abort(REF)

    class Removing(Remote):
        async def _pieces(self, data: bytes, offset: int) -> AsyncIterator[bytes]:
            yield data[:1000]
            await removed(offset)
            yield data[1000:2000]

    with pytest.raises(Cancelled, match="was removed"):
        await download(ingests, DIGEST, len(DATA), Removing())
    assert list(ingests) == []


async def test_a_cancelled_download_can_be_resumed(ingests: IngestStore) -> None:
    class Hanging(Remote):
        async def _pieces(self, data: bytes, offset: int) -> AsyncIterator[bytes]:
            yield data[:1000]
            scope.cancel()
            await trio.sleep_forever()

    with trio.CancelScope() as scope:
        await download(ingests, DIGEST, len(DATA), Hanging())
    assert (ingests.status(REF).offset, ingests.status(REF).is_live) == (1000, False)
    await download(ingests, DIGEST, len(DATA), Remote())
