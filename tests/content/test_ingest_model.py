"""Random sequences of calls, kills and power cuts, compared with a model made of dictionaries."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.content.ingests.store import IngestStore, IngestWriter
from imgfs.content.store import ContentStore
from imgfs.errors import (
    AlreadyExists,
    Busy,
    Cancelled,
    ImgfsError,
    Invalid,
    NotFound,
    OffsetMismatch,
    TooLarge,
    VerificationFailed,
)
from imgfs.oci.digest import Digest

REFS = ["a", "b", "layer/c"]
PIECES = [b"", b"x", b"yy", b"zzz"]


@dataclass
class Draft:
    """The model of an ingest. The first `durable` bytes were synced."""

    data: bytes = b""
    durable: int = 0
    total: int | None = None
    is_live: bool = False


@dataclass
class Model:
    """The expected state."""

    drafts: dict[str, Draft] = field(default_factory=dict)
    stored: set[Digest] = field(default_factory=set)
    writers: dict[str, tuple[IngestWriter, Draft]] = field(default_factory=dict)


refs = st.sampled_from(REFS)
steps = st.one_of(
    st.tuples(st.just("open"), refs, st.sampled_from([None, 0, 2, 5])),
    st.tuples(st.just("write"), refs, st.sampled_from(["end", "start", "off"]), st.sampled_from(PIECES)),
    st.tuples(st.just("truncate"), refs, st.sampled_from([0, 1, 2])),
    st.tuples(st.just("fsync"), refs),
    st.tuples(st.just("close"), refs),
    st.tuples(st.just("declare"), refs, st.sampled_from([None, 0, 2, 5])),
    st.tuples(st.just("commit"), refs, st.booleans(), st.sampled_from(["sha256", "sha512"])),
    st.tuples(st.just("rename"), refs, refs),
    st.tuples(st.just("abort"), refs),
    st.tuples(st.just("kill")),
    st.tuples(st.just("cut")),
)


class Machine:
    """Runs each step in the store and in the model, and compares the results."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self.root = root
        self.nursery = nursery
        self.era = 0
        self.model = Model()
        self.start()

    def start(self) -> None:
        self.content = ContentStore(self.root)
        self.ingests = IngestStore(self.content, self.nursery, era=str(self.era))

    async def do(self, step: tuple[object, ...]) -> None:
        name, *arguments = step
        expected = getattr(self, f"expect_{name}")(*arguments)
        try:
            await getattr(self, f"do_{name}")(*arguments)
            got = None
        except ImgfsError as error:
            got = type(error)
        assert got is expected, f"{step}: got {got}, expected {expected}"
        self.compare()

    def compare(self) -> None:
        drafts = self.model.drafts
        found = {status.ref: status for status in self.ingests}
        assert set(found) == set(drafts)
        for ref, draft in drafts.items():
            status = found[ref]
            assert status.path.read_bytes() == draft.data
            assert (status.offset, status.total, status.is_live) == (len(draft.data), draft.total, draft.is_live)
            assert status.digest == Digest.of(draft.data[: status.hashed], status.digest.algorithm)
            assert draft.durable <= status.durable <= status.offset
        assert {info.digest for info in self.content} == self.model.stored

    def _open(self, ref: str) -> Draft | type[ImgfsError]:
        """Return the draft of the ref's writer, or the error that the writer gets."""
        _, draft = self.model.writers[ref]
        return draft if self.model.drafts.get(ref) is draft else Cancelled

    def expect_open(self, ref: str, total: int | None) -> type[ImgfsError] | None:
        draft = self.model.drafts.get(ref)
        if draft is not None and draft.is_live:
            return Busy
        if draft is not None and total is not None and total < len(draft.data):
            return TooLarge
        draft = self.model.drafts.setdefault(ref, Draft())
        if total is not None:
            draft.total = total
        draft.is_live = True
        return None

    async def do_open(self, ref: str, total: int | None) -> None:
        writer = await self.ingests.open(ref, total=total)
        if ref in self.model.writers:
            await self.model.writers[ref][0].close()
        self.model.writers[ref] = (writer, self.model.drafts[ref])

    def expect_write(self, ref: str, where: str, piece: bytes) -> type[ImgfsError] | None:
        if ref not in self.model.writers:
            return None
        draft = self._open(ref)
        if isinstance(draft, type):
            return draft
        offset = self._offset(draft, where)
        if offset not in (0, len(draft.data)):
            return OffsetMismatch
        if draft.total is not None and offset + len(piece) > draft.total:
            return TooLarge
        if offset == 0 and piece:
            draft.data, draft.durable = b"", 0
        draft.data += piece
        return None

    async def do_write(self, ref: str, where: str, piece: bytes) -> None:
        if ref in self.model.writers:
            writer, _ = self.model.writers[ref]
            await writer.write_at({"end": writer.offset, "start": 0, "off": writer.offset + 1}[where], piece)

    @staticmethod
    def _offset(draft: Draft, where: str) -> int:
        return {"end": len(draft.data), "start": 0, "off": len(draft.data) + 1}[where]

    def expect_truncate(self, ref: str, size: int) -> type[ImgfsError] | None:
        if ref not in self.model.writers:
            return None
        draft = self._open(ref)
        if isinstance(draft, type):
            return draft
        if size not in (0, len(draft.data)):
            return Invalid
        if size == 0:
            draft.data, draft.durable = b"", 0
        return None

    async def do_truncate(self, ref: str, size: int) -> None:
        if ref in self.model.writers:
            await self.model.writers[ref][0].truncate(size)

    def expect_fsync(self, ref: str) -> type[ImgfsError] | None:
        if ref not in self.model.writers:
            return None
        draft = self._open(ref)
        if isinstance(draft, type):
            return draft
        draft.durable = len(draft.data)
        return None

    async def do_fsync(self, ref: str) -> None:
        if ref in self.model.writers:
            await self.model.writers[ref][0].fsync()

    def expect_close(self, ref: str) -> None:
        if ref in self.model.writers:
            self.model.writers[ref][1].is_live = False

    async def do_close(self, ref: str) -> None:
        if ref in self.model.writers:
            await self.model.writers.pop(ref)[0].close()

    def expect_declare(self, ref: str, total: int | None) -> type[ImgfsError] | None:
        draft = self.model.drafts.get(ref)
        if draft is None:
            return NotFound
        if total is not None and total < len(draft.data):
            return TooLarge
        draft.total = total
        return None

    async def do_declare(self, ref: str, total: int | None) -> None:
        await self.ingests.declare(ref, total=total)

    def expect_commit(self, ref: str, right: bool, algorithm: str) -> type[ImgfsError] | None:
        draft = self.model.drafts.get(ref)
        self.digest = Digest.of((draft.data if draft else b"") if right else b"wrong", algorithm)
        if draft is None:
            return NotFound
        if draft.is_live:
            return Busy
        if self.digest in self.model.stored:
            del self.model.drafts[ref]
            return AlreadyExists
        if not right or draft.total not in (None, len(draft.data)):
            return VerificationFailed
        self.model.stored.add(self.digest)
        del self.model.drafts[ref]
        return None

    async def do_commit(self, ref: str, right: bool, algorithm: str) -> None:
        await self.ingests.commit(ref, self.digest)

    def expect_rename(self, ref: str, new: str) -> type[ImgfsError] | None:
        drafts = self.model.drafts
        if ref not in drafts:
            return NotFound
        if drafts[ref].is_live or (new in drafts and drafts[new].is_live):
            return Busy
        drafts[new] = drafts.pop(ref)
        return None

    async def do_rename(self, ref: str, new: str) -> None:
        await self.ingests.rename(ref, new)

    def expect_abort(self, ref: str) -> type[ImgfsError] | None:
        return None if self.model.drafts.pop(ref, None) else NotFound

    async def do_abort(self, ref: str) -> None:
        await self.ingests.abort(ref)

    def expect_kill(self) -> None:
        for draft in self.model.drafts.values():
            draft.is_live = False

    async def do_kill(self) -> None:
        for writer, _ in self.model.writers.values():
            await writer.close()
        self.model.writers.clear()
        self.start()

    def expect_cut(self) -> None:
        self.expect_kill()
        found = {status.ref: status.durable for status in self.ingests}
        for ref, draft in self.model.drafts.items():
            draft.data = draft.data[: found[ref]]
            draft.durable = len(draft.data)

    async def do_cut(self) -> None:
        self.era += 1
        await self.do_kill()


@settings(max_examples=60)
@given(st.lists(steps, max_size=25))
def test_any_sequence_of_calls_matches_the_model(sequence: list[tuple[object, ...]]) -> None:
    async def run(root: Path) -> None:
        async with trio.open_nursery() as nursery:
            machine = Machine(root, nursery)
            for step in sequence:
                await machine.do(step)
            nursery.cancel_scope.cancel()

    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory))
