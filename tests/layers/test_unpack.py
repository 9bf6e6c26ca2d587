"""The pass: both digests are verified, the right error is raised, and a failed pass leaves no files."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from imgfs.errors import ImgfsError, Malformed, StorageFailed, TooLarge, Unreachable, Unsupported, VerificationFailed
from imgfs.layers import unpack as room
from imgfs.layers.index import Weight
from imgfs.layers.store import LayerStore
from imgfs.layers.unpack import _coalesce, unpack, unpack_whole
from imgfs.layers.writer import LayerWriter
from imgfs.oci.digest import Digest
from imgfs.testing.images import Dir, File, layer
from tests.layers.passes import described, files, passed, passing, paths, stored, stream
from tests.layers.tars import header

ENTRIES = [Dir("d"), File("d/f", b"content" * 500), File("g", bytes(100_000))]
GOOD = layer(ENTRIES)
FLIPPED = GOOD.blob[:-30] + bytes([GOOD.blob[-30] ^ 1]) + GOOD.blob[-29:]
BAD_TAR = layer(header(b"f", b"0", size=b"not octal") + bytes(1024))
UNKNOWN_TYPE = layer(header(b"f", b"Q") + bytes(1024))
CUT_TAR = layer(GOOD.tar[:2000])


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("piece", [1000, 1 << 20])
async def test_a_pass_proves_both_digests_and_finds_the_entries(
    store: LayerStore, compression: Literal["gzip", "zstd", "none"], piece: int
) -> None:
    made = layer(ENTRIES, compression)
    pieces = [made.blob[at : at + piece] for at in range(0, len(made.blob), piece)]
    unpacked = await passed(store, described(made), *pieces)
    assert unpacked.diff_id == made.diff_id
    assert paths(unpacked.entries) == [b"d", b"d/f", b"g"]


@pytest.mark.parametrize("whole", [False, True], ids=["while it comes", "whole"])
async def test_a_pass_and_its_layer_hold_few_entries_however_many_there_are(store: LayerStore, whole: bool) -> None:
    many = 40_000
    made = layer(b"".join(header(b"%06d" % number) for number in range(many)) + bytes(1024))
    with store.writer() as writer:
        await trio.to_thread.run_sync(int)  # what is made once
        tracemalloc.start()
        try:
            if whole:
                diff_id = await unpack_whole(*passing(described(made)), [made.blob], writer)
            else:
                diff_id = await unpack(*passing(described(made)), stream(made.blob), writer, lambda _: None)
            held = writer.adopt(diff_id)
            assert tracemalloc.get_traced_memory()[0] < 1 << 20, "all entries take eight"
        finally:
            tracemalloc.stop()
        writer.make_durable()
    assert held.weight() == Weight(many, 0)
    assert sum(1 for _ in held.entries()) == many
    assert store.get(made.diff_id).weight() == Weight(many, 0)


async def test_the_weight_is_of_all_that_a_tree_may_hold(store: LayerStore) -> None:
    """The weight includes directories that no entry names, and the bytes of extended headers."""
    made = layer([File("a/b/c/f", b""), File("a/b/c/g", b""), File("a/h", b"", xattrs={"user.a": b"x" * 1000})])
    weight = (await stored(store, made)).weight()
    assert weight.nodes == 3 + 3 + 1
    assert 1000 <= weight.extra < 1100
    assert LayerStore(store.get(made.diff_id).tar.parents[3]).get(made.diff_id).weight() == weight


async def test_progress_counts_every_compressed_byte_once_and_as_it_comes(store: LayerStore) -> None:
    moved: list[int] = []
    with store.writer() as writer:
        await unpack(*passing(described(GOOD)), stream(GOOD.blob[:10], GOOD.blob[10:]), writer, moved.append)
    assert moved == [10, len(GOOD.blob) - 10]


async def test_pieces_of_a_slow_network_are_not_held_back(mock_clock: MockClock) -> None:
    passed_on: list[int] = []

    async def slow() -> AsyncIterator[bytes]:
        yield GOOD.blob[:10]
        mock_clock.jump(0.9)
        yield GOOD.blob[10:20]
        assert passed_on == []
        mock_clock.jump(0.1)
        yield GOOD.blob[20:30]
        assert passed_on == [30]
        yield GOOD.blob[30:]

    async for piece in _coalesce(slow(), lambda _: None):
        passed_on.append(len(piece))
    assert passed_on == [30, len(GOOD.blob) - 30]


async def test_bytes_behind_the_end_of_the_tar_belong_to_the_diff_id(store: LayerStore) -> None:
    made = layer(GOOD.tar + b"garbage" * 100)
    unpacked = await passed(store, described(made), made.blob)
    assert unpacked.diff_id == Digest.of(GOOD.tar + b"garbage" * 100)
    assert len(unpacked.entries) == 3


async def test_a_sha512_blob_is_proved_by_sha512(store: LayerStore) -> None:
    right = described(GOOD, digest=Digest.of(GOOD.blob, "sha512"))
    assert (await passed(store, right, GOOD.blob)).diff_id == GOOD.diff_id
    with pytest.raises(VerificationFailed, match="have digest sha512:"):
        await passed(store, right, FLIPPED)


@pytest.mark.parametrize(
    ("blob", "error", "said"),
    [
        (GOOD.blob[:-1], VerificationFailed, "bytes, expected"),
        (GOOD.blob + b"x", VerificationFailed, "bytes, expected"),
        (b"", VerificationFailed, "got 0 bytes"),
        (FLIPPED, VerificationFailed, "the bytes have digest"),
        (b"X" + GOOD.blob[1:], VerificationFailed, "the bytes have digest"),
        (layer([File("x", b"y" * 5)]).blob.ljust(len(GOOD.blob), b"\0"), VerificationFailed, "have digest"),
    ],
    ids=["short", "long", "empty", "flipped", "magic", "other"],
)
async def test_wrong_bytes_are_told_as_such_whatever_else_they_break(
    store: LayerStore, blob: bytes, error: type[ImgfsError], said: str
) -> None:
    with pytest.raises(error, match=said):
        await passed(store, described(GOOD), blob)


@pytest.mark.parametrize("made", [BAD_TAR, UNKNOWN_TYPE, CUT_TAR], ids=["number", "type", "cut"])
async def test_a_broken_tar_with_the_wrong_digest_is_a_wrong_digest(store: LayerStore, made: object) -> None:
    assert isinstance(made, type(GOOD))
    with pytest.raises(VerificationFailed):
        await passed(store, described(made, digest=GOOD.digest), made.blob)


def promised(blob: bytes) -> object:
    """Return the right descriptor of `blob`."""
    return described(GOOD, digest=Digest.of(blob), size=len(blob))


@pytest.mark.parametrize(
    ("blob", "error", "said"),
    [
        (GOOD.blob[:-9], Malformed, "truncated"),
        (GOOD.blob[: len(GOOD.blob) // 2], Malformed, "truncated"),
        (b"", Malformed, "truncated"),
        (b"no gzip at all", Malformed, "no gzip"),
        (GOOD.blob + b"tail", Malformed, "gzip"),
        (GOOD.tar, Malformed, "gzip"),
        (gzip.compress(GOOD.tar)[:-8] + bytes(8), Malformed, "gzip"),
        (BAD_TAR.blob, Malformed, "tar entry b'' at offset 0"),
        (UNKNOWN_TYPE.blob, Unsupported, "entry type"),
        (CUT_TAR.blob, Malformed, "tar"),
    ],
    ids=["trailer", "half", "empty", "text", "tail", "tar", "checksum", "number", "type", "cut"],
)
async def test_the_promised_bytes_may_still_be_broken(
    store: LayerStore, blob: bytes, error: type[ImgfsError], said: str
) -> None:
    descriptor = promised(blob)
    assert isinstance(descriptor, type(described(GOOD)))
    with pytest.raises(error, match=said):
        await passed(store, descriptor, blob)


async def test_inflated_bytes_at_the_limit_and_one_over(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "INFLATED_MAX", len(GOOD.tar))
    await passed(store, described(GOOD), GOOD.blob)
    monkeypatch.setattr(room, "INFLATED_MAX", len(GOOD.tar) - 1)
    with pytest.raises(TooLarge, match="inflates to more"):
        await passed(store, described(GOOD), GOOD.blob)


async def test_a_bomb_is_stopped_at_the_limit_and_takes_no_disk(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "INFLATED_MAX", 8 << 20)
    bomb = layer([File("zeros", bytes(64 << 20))])
    with store.writer() as writer:
        with pytest.raises(TooLarge):
            await unpack(*passing(described(bomb)), stream(bomb.blob), writer, lambda _: None)
        assert writer.offset <= 8 << 20
        (tar,) = (name for name in files(tmp_path) if name.endswith("/tar"))
        # The piece of tar with the header, at most 1 MiB. The zeros after it are holes.
        assert (tmp_path / tar).stat().st_blocks * 512 <= 1 << 20 < writer.offset
    assert files(tmp_path) == []


@pytest.mark.parametrize("error", [Unreachable("cut"), StorageFailed("x")])
async def test_the_error_of_the_stream_is_raised_as_itself(
    tmp_path: Path, store: LayerStore, error: ImgfsError
) -> None:
    async def broken() -> object:
        yield GOOD.blob[:100]
        raise error

    with pytest.raises(type(error)) as caught, store.writer() as writer:
        await unpack(*passing(described(GOOD)), broken(), writer, lambda _: None)
    assert caught.value is error
    assert files(tmp_path) == []


async def test_a_cancelled_pass_leaves_nothing(tmp_path: Path, store: LayerStore) -> None:
    with trio.CancelScope() as scope:

        async def stalled() -> object:
            yield GOOD.blob[:100]
            scope.cancel()
            await trio.sleep_forever()

        with store.writer() as writer:
            await unpack(*passing(described(GOOD)), stalled(), writer, lambda _: None)
    assert scope.cancelled_caught
    assert files(tmp_path) == []


async def test_a_cancelled_pass_over_a_whole_bomb_ends_long_before_the_bomb_does(
    tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb, appended = layer([File("zeros", bytes(64 << 20))]), list[int]()

    def append(_: LayerWriter, piece: bytes) -> None:
        appended.append(len(piece))
        trio.from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(LayerWriter, "append", append)
    with trio.CancelScope() as scope, store.writer() as writer:
        await unpack_whole(*passing(described(bomb)), [bomb.blob], writer)
    assert scope.cancelled_caught
    assert sum(appended) < 16 << 20
    assert files(tmp_path) == []
