"""Entries encoded as tar headers: the layer walk and tarfile read the same entries back."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.layers.entry import Entry, EntryKind
from imgfs.layers.paths import clean
from imgfs.snapshots.encode import encode_entry, padded
from tests.layers.tars import END, only, walk

NAMES = (
    st.binary(min_size=1, max_size=90)
    .map(lambda raw: raw.replace(b"\0", b"0").replace(b".wh.", b"wh").replace(b"/", b"-"))
    .filter(lambda raw: raw not in (b".", b".."))
)
PATHS = st.lists(NAMES, min_size=1, max_size=6).map(b"/".join)
IDS = st.integers(0, 2**32 - 2)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=30).map(lambda raw: b"user." + raw.replace(b"\0", b"").replace(b"=", b"")),
    st.binary(max_size=200),
    max_size=3,
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(EntryKind))
    path = draw(PATHS)
    if kind in (EntryKind.WHITEOUT, EntryKind.OPAQUE):
        return Entry(path, kind)
    return Entry(
        path,
        kind,
        draw(st.integers(0, 0o7777)),
        draw(IDS),
        draw(IDS),
        draw(st.integers(-(2**63), 2**63 - 1)),
        size=draw(st.integers(0, 3000)) if kind is EntryKind.REGULAR else 0,
        link=draw(PATHS) if kind in (EntryKind.SYMLINK, EntryKind.HARDLINK) else b"",
        major=draw(st.integers(1, 4095)) if kind in (EntryKind.CHARACTER, EntryKind.BLOCK) else 0,
        minor=draw(st.integers(0, 2**20 - 1)) if kind in (EntryKind.CHARACTER, EntryKind.BLOCK) else 0,
        xattrs=tuple(sorted(draw(XATTRS).items())),
    )


def tar_of(*made: Entry) -> bytes:
    return b"".join(encode_entry(one) + padded(b"x" * one.size) for one in made) + END


@given(st.lists(entries(), max_size=4))
def test_the_walk_reads_encoded_entries_back(made: list[Entry]) -> None:
    found = [Entry(*(getattr(one, name) for name in one.__struct_fields__)) for one in walk(tar_of(*made))]
    assert [without_offset(one) for one in found] == made


def without_offset(entry: Entry) -> Entry:
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return Entry(**(fields | {"offset": 0}))


@given(st.lists(entries(), max_size=4))
def test_tarfile_reads_encoded_entries_back(made: list[Entry]) -> None:
    plain = io.BytesIO(tar_of(*made))
    with tarfile.open(fileobj=plain, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        members = tar.getmembers()
    assert len(members) == len(made)
    for one, info in zip(made, members, strict=True):
        assert (info.mode, info.uid, info.gid, info.uname, info.gname) == (one.mode, one.uid, one.gid, "", "")
        if one.kind not in (EntryKind.WHITEOUT, EntryKind.OPAQUE):
            assert clean(info.name.encode("utf-8", "surrogateescape")) == clean(one.path)
        assert info.linkname.encode("utf-8", "surrogateescape").rstrip(b"/") == one.link.rstrip(b"/")
        assert info.size == one.size


@pytest.mark.parametrize("size", [0, 2**33 - 1, 2**33, 2**62])
def test_sizes_beyond_eleven_digits_are_records(size: int) -> None:
    header = encode_entry(Entry(b"f", EntryKind.REGULAR, size=size))
    assert (b"size=%d\n" % size in header) == (size >= 2**33)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (1, b"mtime=0.000000001\n"),
        (1_500_000_000, b"mtime=1.5\n"),
        (-1, b"mtime=-0.000000001\n"),
        (-1_000_000_000, b"mtime=-1\n"),
        (2**33 * 10**9, b"mtime=8589934592\n"),
    ],
)
def test_times_are_exact(nanoseconds: int, text: bytes) -> None:
    made = Entry(b"f", EntryKind.REGULAR, mtime=nanoseconds)
    assert text in encode_entry(made)
    assert only(encode_entry(made)).mtime == nanoseconds


def test_a_plain_entry_is_one_block() -> None:
    largest = Entry(b"n" * 100, EntryKind.REGULAR, 0o7777, 2**21 - 1, 2**21 - 1, (2**33 - 1) * 10**9)
    assert len(encode_entry(largest)) == 512
    assert len(encode_entry(Entry(b"n" * 101, EntryKind.REGULAR))) == 3 * 512


@pytest.mark.parametrize("length", [*range(80, 120), *range(980, 1010), 9_990, 99_990])
def test_records_count_their_own_digits(length: int) -> None:
    made = Entry(b"f", EntryKind.REGULAR, xattrs=((b"user.k", b"v" * min(length, 60_000)),))
    assert only(encode_entry(made)).xattrs == made.xattrs
