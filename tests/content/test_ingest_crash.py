"""After every crash, everything acknowledged exists, and everything that exists was written in that form."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from imgfs.content.ingests.refs import ref_id
from imgfs.content.ingests.status import IngestStatus
from imgfs.content.ingests.store import IngestStore, IngestWriter
from imgfs.content.store import ContentStore
from imgfs.oci.digest import Digest, is_digest
from tests.content.disks import Crash, Op, Recorder, power_cuts


@dataclass
class Fact:
    """A fact that was acknowledged at log position `since`, valid until another operation began at `until`."""

    since: int
    ref: str
    data: bytes | None
    until: int = 1 << 60
    is_durable: bool = True
    total: int | None = None


class Story:
    """Runs operations on the stores, and records what they acknowledged and all bytes ever written to a ref."""

    def __init__(self, content: ContentStore, ingests: IngestStore, recorder: Recorder) -> None:
        self.content = content
        self.ingests = ingests
        self.recorder = recorder
        self.facts: list[Fact] = []
        self.stored: list[tuple[int, Digest, bytes]] = []
        self.streams: dict[str, list[bytes]] = {}

    def begin(self, ref: str) -> None:
        for fact in self.facts:
            if fact.ref == ref:
                fact.until = min(fact.until, len(self.recorder.log))

    def learn(self, ref: str, data: bytes | None, *, is_durable: bool = True, total: int | None = None) -> None:
        self.facts.append(Fact(len(self.recorder.log), ref, data, is_durable=is_durable, total=total))

    async def write(self, writer: IngestWriter, offset: int, piece: bytes) -> None:
        if offset == 0:
            self.begin(writer.ref)
            self.streams.setdefault(writer.ref, []).append(b"")
        self.streams[writer.ref][-1] += piece
        await writer.write_at(offset, piece)
        self.learn(writer.ref, self.streams[writer.ref][-1], is_durable=False)

    async def fsync(self, writer: IngestWriter) -> None:
        await writer.fsync()
        self.learn(writer.ref, self.streams[writer.ref][-1])

    async def declare(self, ref: str, total: int) -> None:
        self.begin_totals(ref)
        await self.ingests.declare(ref, total=total)
        self.learn(ref, b"", total=total)

    def begin_totals(self, ref: str) -> None:
        for fact in self.facts:
            if fact.ref == ref and fact.total is not None:
                fact.until = min(fact.until, len(self.recorder.log))

    async def gone(self, ref: str, work: Awaitable[object]) -> None:
        self.begin(ref)
        await work
        self.learn(ref, None)

    async def commit(self, ref: str) -> None:
        data = self.streams[ref][-1]
        await self.gone(ref, self.ingests.commit(ref, Digest.of(data)))
        self.stored.append((len(self.recorder.log), Digest.of(data), data))

    async def rename(self, ref: str, new: str) -> None:
        data = self.streams[ref][-1]
        self.begin(new)
        self.streams.setdefault(new, []).extend(self.streams[ref])
        await self.gone(ref, self.ingests.rename(ref, new))
        self.learn(new, data, is_durable=False)


async def commits(story: Story) -> None:
    async with await story.ingests.open("one") as writer:
        await story.write(writer, 0, b"first ")
        await story.write(writer, 6, b"second")
    await story.commit("one")
    await story.content.add(Digest.of(b"anonymous"), b"anonymous")
    story.stored.append((len(story.recorder.log), Digest.of(b"anonymous"), b"anonymous"))


async def commits_what_was_declared(story: Story) -> None:
    """Commit an ingest whose record was durable before its bytes: its bytes must be synced before its name."""
    async with await story.ingests.open("one") as writer:
        await story.declare("one", 5)
        await story.write(writer, 0, b"bytes")
    await story.commit("one")


async def syncs_and_restarts(story: Story) -> None:
    async with await story.ingests.open("one") as writer:
        await story.write(writer, 0, b"abcd")
        await story.fsync(writer)
        await story.write(writer, 4, b"efgh")
        await story.declare("one", 20)
        await story.write(writer, 0, b"ABCDEFGHIJKL")
        await story.fsync(writer)
        await story.declare("one", 12)
    await story.commit("one")


async def removes_and_begins_again(story: Story) -> None:
    async with await story.ingests.open("one") as writer:
        await story.write(writer, 0, b"old bytes")
        await story.fsync(writer)
        await story.gone("one", story.ingests.abort("one"))
    story.begin("one")
    async with await story.ingests.open("one") as writer:
        await story.write(writer, 0, b"new")
        await story.fsync(writer)
    await story.commit("one")


async def renames(story: Story) -> None:
    for ref, data in (("from", b"moved bytes"), ("to", b"replaced")):
        async with await story.ingests.open(ref) as writer:
            await story.write(writer, 0, data)
            await story.fsync(writer)
    await story.rename("from", "to")
    await story.commit("to")


async def many_at_once(story: Story) -> None:
    async def one(number: int) -> None:
        data = b"blob %d" % number
        async with await story.ingests.open(f"{number}") as writer:
            await story.write(writer, 0, data)
        await story.commit(f"{number}")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(one, number)


STORIES = [commits, commits_what_was_declared, syncs_and_restarts, removes_and_begins_again, renames, many_at_once]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return the directory in which crash states are created: in memory if possible."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as directory:
        yield Path(directory)


async def tell(story: Callable[[Story], Awaitable[None]], root: Path, nursery: trio.Nursery) -> Story:
    recorder = Recorder(root)
    content = ContentStore(root, disk=recorder)
    told = Story(content, IngestStore(content, nursery, era="before"), recorder)
    await story(told)
    return told


def check(story: Story, at: int, ops: list[Op], era: str, scratch: Path, nursery: trio.Nursery) -> None:
    root = scratch / "state"
    Crash(story.recorder.root, ops).lay_out(root)
    content = ContentStore(root)
    for info in content:
        data = content.path(info.digest).read_bytes()
        assert Digest.of(data) == info.digest, "a blob that does not verify"
    assert all(is_digest(f"{path.parent.parent.name}:{path.name}") for path in root.glob("blobs/*/*/*")), "garbage"
    for since, digest, _ in story.stored:
        assert since > at or digest in content, "an acknowledged commit is lost"
    found = {status.ref: status for status in IngestStore(content, nursery, era=era)}
    assert {path.name for path in (root / "ingest").iterdir()} == {ref_id(ref) for ref in found}, "garbage"
    assert {path.name for path in (root / "ingest").glob("*/*")} <= {"data", "meta"}, "garbage"
    for ref, status in found.items():
        data = status.path.read_bytes()
        assert len(data) == status.offset
        assert any(stream.startswith(data) for stream in story.streams[ref]), "bytes that nobody wrote so"
    for fact in story.facts:
        if fact.since <= at <= fact.until and (fact.is_durable or era == "before"):
            check_fact(fact, found)
    shutil.rmtree(root)


def check_fact(fact: Fact, found: dict[str, IngestStatus]) -> None:
    status = found.get(fact.ref)
    if fact.data is None:
        assert status is None, f"{fact} is there again"
    else:
        assert status is not None, f"{fact} is lost"
        assert status.offset >= len(fact.data)
        assert fact.total is None or status.total == fact.total


@pytest.mark.parametrize("story", STORIES)
async def test_after_a_kill_everything_acknowledged_is_there(
    tmp_path: Path, scratch: Path, nursery: trio.Nursery, story: Callable[[Story], Awaitable[None]]
) -> None:
    told = await tell(story, tmp_path, nursery)
    for end in range(len(told.recorder.log) + 1):
        check(told, end, told.recorder.log[:end], "before", scratch, nursery)


@pytest.mark.parametrize("story", STORIES)
async def test_after_a_power_cut_everything_durable_is_there(
    tmp_path: Path, scratch: Path, nursery: trio.Nursery, story: Callable[[Story], Awaitable[None]]
) -> None:
    told = await tell(story, tmp_path, nursery)
    cuts = 0
    for end in range(len(told.recorder.log) + 1):
        for ops in power_cuts(told.recorder.log, end):
            check(told, end, ops, "after", scratch, nursery)
            cuts += 1
    assert cuts > len(told.recorder.log)
