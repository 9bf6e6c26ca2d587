"""The header walk on ordinary archives: every format, every kind of entry, every split."""

from __future__ import annotations

import pytest

from imgfs.errors import Malformed
from imgfs.layers.entry import Entry, EntryKind
from imgfs.layers.tar import TarWalk

from .tars import END, GNU, USTAR, base256, checked, gnu_long, header, member, only, pax, walk

MIXED = (
    member(b"./", b"5", mode=0o755)
    + member(b"a/", b"5")
    + member(b"a/file", data=b"x" * 700)
    + pax((b"path", b"a/" + b"p" * 200), (b"mtime", b"-1.5"), (b"SCHILY.xattr.user.k", b"v"))
    + member(b"short", data=b"y")
    + gnu_long(b"L", b"a/" + b"l" * 150)
    + gnu_long(b"K", b"a/" + b"p" * 200)
    + member(b"short", b"1", magic=GNU)
    + member(b"a/.wh.gone")
    + END
)


def test_an_empty_stream_is_an_empty_layer() -> None:
    assert walk(b"") == []


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + b"junk that nobody reads", END + member(b"late")])
def test_the_end_of_the_archive(end: bytes) -> None:
    assert [entry.path for entry in walk(member(b"f") + end)] == [b"f"]


def test_a_header_after_a_lone_zero_block_is_refused() -> None:
    with pytest.raises(Malformed, match="zero block"):
        walk(bytes(512) + member())


def test_padding_of_the_last_payload_may_miss() -> None:
    assert walk(header(size=3) + b"abc")[0].size == 3


@pytest.mark.parametrize("cut", [1, 511, 513, 1000])
def test_a_truncated_stream_is_refused(cut: int) -> None:
    data = pax((b"comment", b"c" * 600)) + member(data=b"d" * 600)
    with pytest.raises(Malformed, match="truncated"):
        walk(data[:cut])
    with pytest.raises(Malformed, match="truncated"):
        walk(data[: 512 + 1024 + cut])


def test_any_split_gives_the_same_entries() -> None:
    whole = walk(MIXED)
    assert len(whole) == 6
    for cut in range(len(MIXED)):
        assert walk(MIXED, cuts=[cut]) == whole
    assert walk(MIXED, cuts=range(len(MIXED))) == whole


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_pieces_of_any_bytes_like_type(kind: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    parser = TarWalk()
    parser.feed(kind(MIXED))
    assert parser.close() == walk(MIXED)


def test_an_error_is_raised_again_and_nothing_is_added() -> None:
    parser = TarWalk()
    with pytest.raises(Malformed) as first:
        parser.feed(member(b"good") + b"x" * 512)
    for again in (lambda: parser.feed(member()), parser.close):
        with pytest.raises(Malformed) as second:
            again()
        assert second.value.message == first.value.message
    assert "offset 512" in first.value.message


def test_all_fields_of_a_regular_file() -> None:
    entry = only(header(b"d/f", mode=0o106755, uid=1000, gid=1001, size=5, mtime=77) + b"hello" + bytes(507))
    assert entry == Entry(b"d/f", EntryKind.REGULAR, 0o6755, 1000, 1001, 77_000_000_000, 5, 512)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (b"0", b"f", EntryKind.REGULAR),
        (b"0", b"f/", EntryKind.REGULAR),
        (b"\0", b"f", EntryKind.REGULAR),
        (b"7", b"f", EntryKind.REGULAR),
        (b"\0", b"f/", EntryKind.DIRECTORY),
        (b"5", b"f", EntryKind.DIRECTORY),
        (b"D", b"f", EntryKind.DIRECTORY),
        (b"6", b"f", EntryKind.FIFO),
    ],
)
def test_kinds(kind: bytes, name: bytes, expected: EntryKind) -> None:
    assert only(member(name, kind)).kind is expected


def test_links_and_devices() -> None:
    assert only(member(b"s", b"2", link=b"/../x//y")).link == b"/../x//y"
    assert only(member(b"h", b"1", link=b"/../x//y")).link == b"x/y"
    block, char = only(member(b"b", b"4", major=8, minor=1)), only(member(b"c", b"3", major=1, minor=3))
    assert (block.kind, block.major, block.minor) == (EntryKind.BLOCK, 8, 1)
    assert (char.kind, char.major, char.minor) == (EntryKind.CHARACTER, 1, 3)


def test_a_character_device_0_0_is_left_out() -> None:
    assert walk(member(b"c", b"3") + member(b"b", b"4")) == [Entry(b"b", EntryKind.BLOCK, 0o644)]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_the_size_of_what_has_no_payload_is_ignored(kind: bytes) -> None:
    first, second = walk(header(b"x", kind, size=1000, link=b"y", major=1) + member(b"next"))
    assert (first.size, first.offset, second.path) == (0, 0, b"next")


@pytest.mark.parametrize("kind", [b"D", b"V"])
def test_the_payload_of_dump_directories_and_labels_is_skipped(kind: bytes) -> None:
    entries = walk(member(b"x", kind, b"Yfile\0\0") + member(b"next"))
    assert [entry.path for entry in entries] == ([b"x", b"next"] if kind == b"D" else [b"next"])
    assert entries[0].size == 0


def test_a_ustar_prefix_precedes_the_name_but_not_in_other_formats() -> None:
    assert only(member(b"name", prefix=b"deep/er")).path == b"deep/er/name"
    assert only(member(b"name", prefix=b"deep/er", magic=b"")).path == b"name"
    assert only(member(b"name", prefix=b"00000001234\x0000000001234\0", magic=GNU)).path == b"name"


def test_a_prefix_in_a_gnu_header_as_old_go_wrote_it() -> None:
    assert only(member(b"name", prefix=b"deep/er", magic=GNU)).path == b"deep/er/name"


def test_a_star_prefix_ends_before_its_times() -> None:
    block = bytearray(header(b"name", prefix=b"p" * 131 + b"00000000000\x0000000000000\0"))
    block[508:512] = b"tar\0"
    assert only(checked(bytes(block))).path == b"p" * 131 + b"/name"


def test_a_signed_checksum_is_accepted() -> None:
    block = header(b"\xff\xfe")
    total = sum(block[:148] + block[156:]) + 256 - 512
    assert only(block[:148] + b"%06o\0 " % total + block[156:]).path == b"\xff\xfe"


@pytest.mark.parametrize(
    ("field", "value"),
    [(b"0000644\0", 0o644), (b"   644 \0", 0o644), (b"644\0junk"[:8], 0o644), (bytes(8), 0), (b" " * 8, 0)],
)
def test_spellings_of_octal_numbers(field: bytes, value: int) -> None:
    assert only(header(uid=field)).uid == value


@pytest.mark.parametrize("mtime", [-1, -(1 << 40), 0, 1 << 33])
def test_base_256_times(mtime: int) -> None:
    limited = max(-(1 << 63), min(mtime * 10**9, (1 << 63) - 1))
    assert only(header(mtime=base256(mtime, 12))).mtime == limited


def test_base_256_sizes_and_owners() -> None:
    assert only(header(uid=base256(2**32 - 2, 8), gid=base256(5, 8))).uid == 2**32 - 2
    assert only(member(data=b"x" * 9, size=base256(9, 12))).size == 9


def test_gnu_long_names_win_over_the_header() -> None:
    long, target = b"n" * 120 + b"/" + b"m" * 200, b"t" * 300
    entry = only(gnu_long(b"K", target) + gnu_long(b"L", long) + member(b"n" * 100, b"2", link=b"t" * 100, magic=GNU))
    assert (entry.path, entry.link) == (long, target)


def test_two_formats_in_one_archive() -> None:
    entries = walk(member(b"a", magic=USTAR) + member(b"b", magic=GNU) + member(b"c", magic=b""))
    assert [entry.path for entry in entries] == [b"a", b"b", b"c"]
