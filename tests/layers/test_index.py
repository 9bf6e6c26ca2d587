"""The index of a layer: it reads back as written, and every kind of damage is detected."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import StorageFailed
from imgfs.layers import index as room
from imgfs.layers.entry import Entry, EntryKind, Extent
from imgfs.layers.index import SIZE_BYTES, IndexWriter, LayerIndex, Weight, stored_weight

NUMBERS = st.integers(0, 2**32 - 2)
ENTRIES = st.builds(
    Entry,
    st.binary(max_size=20),
    st.sampled_from(EntryKind),
    st.integers(0, 0o7777),
    NUMBERS,
    NUMBERS,
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=20),
    NUMBERS,
    NUMBERS,
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=2).map(tuple),
    st.none() | st.lists(st.builds(Extent, NUMBERS, NUMBERS, NUMBERS), max_size=3).map(tuple),
)
SOME = [Entry(b"a", EntryKind.DIRECTORY, 0o755), Entry(b"a/b", EntryKind.REGULAR, 0o644, 1, 2, 3, 4, 512)]


WEIGHT = Weight(7, 11)


def written(entries: Sequence[Entry], *, at_once: int = 1000) -> bytes:
    """The bytes of an index file, written in appends of so many entries."""
    with tempfile.TemporaryFile(buffering=0) as file:
        writer = IndexWriter(file.fileno())
        for start in range(0, len(entries), at_once):
            writer.append(list(entries[start : start + at_once]))
        writer.seal(1234, WEIGHT)
        file.seek(0)
        return file.read()


def opened(data: bytes) -> LayerIndex:
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        file.write(data)
        return LayerIndex.open(Path(file.name))


@given(st.lists(ENTRIES, max_size=5), st.integers(1, 3))
def test_what_is_written_is_read_back_as_often_as_one_likes(entries: list[Entry], at_once: int) -> None:
    index = opened(written(entries, at_once=at_once))
    assert [list(index), list(index)] == [entries, entries]
    assert (index.weight, index.tar_size) == (WEIGHT, 1234)


def test_the_weight_is_told_by_the_head(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(written(SOME))
    assert stored_weight(tmp_path / "index") == WEIGHT
    (tmp_path / "index").write_bytes(written(SOME)[:70])
    assert stored_weight(tmp_path / "index") is None
    assert stored_weight(tmp_path / "none") is None


@given(st.data())
def test_no_cut_and_no_flipped_bit_passes(data: st.DataObject) -> None:
    """The size of the tar is not covered, because the store compares it with the tar."""
    good = bytearray(written(SOME))
    at = data.draw(st.integers(SIZE_BYTES, len(good) - 1))
    flipped = bytes([*good[:at], good[at] ^ (1 << data.draw(st.integers(0, 7))), *good[at + 1 :]])
    for damaged in (flipped, bytes(good[:at]), bytes(good) + b"\0"):
        with pytest.raises(StorageFailed, match="damaged or of another version"):
            opened(damaged)


@pytest.mark.parametrize("payload", [b"", b"\xc0", msgspec.msgpack.encode([1]), msgspec.msgpack.encode([[b"a", 99]])])
def test_a_sound_sum_over_something_else_does_not_pass_either(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    class Other:
        def encode(self, _: object) -> bytes:
            return payload

    monkeypatch.setattr(room, "_encoder", Other())
    with pytest.raises(StorageFailed, match="layer index"):
        list(opened(written(SOME)))


def test_what_a_full_disk_did_not_take_can_be_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BATCH", 1)
    real, left = os.pwrite, [1]

    def pwrite(file: int, data: bytes, offset: int) -> int:
        if not left:
            left.append(9)
            raise OSError(errno.ENOSPC, "full")
        left.pop()
        return real(file, data, offset)

    with tempfile.NamedTemporaryFile(buffering=0) as file:
        writer, entries = IndexWriter(file.fileno()), list(SOME)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            with pytest.raises(OSError, match="full"):
                writer.append(entries)
        assert entries == SOME[1:]
        writer.append(entries)
        writer.seal(0, WEIGHT)
        assert list(LayerIndex.open(Path(file.name))) == SOME


def test_reading_holds_a_batch_however_many_entries_there_are() -> None:
    index = opened(written([Entry(b"d/%06d" % number, EntryKind.REGULAR, 0o644) for number in range(50_000)]))
    tracemalloc.start()
    try:
        assert sum(1 for _ in index) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
