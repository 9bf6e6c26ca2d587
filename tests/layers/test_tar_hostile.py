"""The table of hostile tars: names, whiteouts, numbers, limits."""

from __future__ import annotations

import pytest

from imgfs.errors import ImgfsError, Malformed, TooLarge, Unsupported
from imgfs.layers.entry import Entry, EntryKind

from .tars import END, base256, gnu_long, header, member, only, pax, walk


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./a", b"a"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"../../etc/passwd", b"etc/passwd"),
        (b"a/../../b", b"b"),
        (b"a/./b//c/", b"a/b/c"),
        (b".//./x", b"x"),
        (b"...", b"..."),
        (b"..a/.b", b"..a/.b"),
        (b"a//", b"a"),
        (b"\xff\n \\", b"\xff\n \\"),
    ],
)
def test_names_are_cleaned_as_in_a_chroot(name: bytes, path: bytes) -> None:
    assert only(member(name)).path == path
    assert only(member(b"link", b"1", link=name)).link == path


@pytest.mark.parametrize("name", [b"./", b"/", b".", b"", b"a/..", b"../.."])
def test_the_root_is_a_directory(name: bytes) -> None:
    assert only(member(name, b"5", mode=0o700)) == Entry(b"", EntryKind.DIRECTORY, 0o700)
    for kind in (b"0", b"1", b"2", b"6"):
        with pytest.raises(Malformed, match="root"):
            walk(member(name, kind, link=b"x"))


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (b".wh.a", Entry(b"a", EntryKind.WHITEOUT)),
        (b"d/.wh.a", Entry(b"d/a", EntryKind.WHITEOUT)),
        (b"d/.wh..hidden", Entry(b"d/.hidden", EntryKind.WHITEOUT)),
        (b"d/.wh....", Entry(b"d/...", EntryKind.WHITEOUT)),
        (b"d/.wh..wh..opq", Entry(b"d", EntryKind.OPAQUE)),
        (b".wh..wh..opq", Entry(b"", EntryKind.OPAQUE)),
    ],
)
def test_whiteouts(name: bytes, entry: Entry) -> None:
    assert only(member(name)) == entry
    assert only(member(name, b"1", link=b".wh..wh.aufs")) == entry
    assert only(member(name, b"5")) == entry


@pytest.mark.parametrize(
    "name",
    [
        b".wh.",
        b"d/.wh..",
        b"d/.wh...",
        b".wh..wh.aufs",
        b".wh..wh.plnk/1.2",
        b".wh.d/a",
        b"a/.wh.d/b/c",
        b".wh.d/.wh.a",
    ],
)
def test_markers_that_hide_nothing_do_not_show(name: bytes) -> None:
    assert walk(member(name, data=b"x") + member(b"next"))[0].path == b"next"


def test_names_that_only_resemble_whiteouts_are_files() -> None:
    for name in (b"a.wh.b", b".wha", b"d.wh./x", b".wh"):
        assert only(member(name)).kind is EntryKind.REGULAR


LONG = b"n" * 255


@pytest.mark.parametrize("path", [LONG, b"/".join([LONG] * 16), b"a/" * 1023 + b"a"])
def test_names_at_the_limit(path: bytes) -> None:
    assert only(gnu_long(b"L", path) + member()).path == path
    assert only(pax((b"linkpath", path)) + member(b"l", b"1")).link == path


@pytest.mark.parametrize(
    "path", [LONG + b"n", b"d/" + LONG + b"n/f", b"/".join([LONG] * 16) + b"/a/", b"a/" * 1024 + b"a", b"n" * 100_000]
)
def test_names_beyond_the_limit(path: bytes) -> None:
    for data in (gnu_long(b"L", path) + member(), pax((b"linkpath", path)) + member(b"l", b"1")):
        with pytest.raises(Malformed, match="expected at most"):
            walk(data)


def test_symbolic_link_targets() -> None:
    assert len(only(gnu_long(b"K", b"t" * 4095) + member(b"l", b"2")).link) == 4095
    for data in (gnu_long(b"K", b"t" * 4096) + member(b"l", b"2"), member(b"l", b"2")):
        with pytest.raises(Malformed, match="symbolic link"):
            walk(data)


@pytest.mark.parametrize(
    "block",
    [
        header(size=base256(-1, 12)),
        header(b"l", b"2", size=base256(-1, 12), link=b"t"),
        header(size=base256(1 << 63, 12)),
        header(size=b"12x"),
        header(size=b"-1"),
        header(size=b"1_0"),
        header(size=b"0o17"),
        header(size=b"8"),
        header(uid=base256((1 << 32) - 1, 8)),
        header(gid=base256(-1, 8)),
        header(mode=b"rwx"),
        header(mtime=b"yesterday"),
        header(b"d", b"3", major=4096),
        header(b"d", b"4", minor=1 << 20),
        header(b"d", b"4", minor=base256(-1, 8)),
        header(b"l", b"1"),
        header()[:148] + b"0000000\0" + header()[156:],
        header()[:148] + b"garbage\0" + header()[156:],
        b"\x1f\x8b" + bytes(510),
    ],
)
def test_bad_numbers_are_refused(block: bytes) -> None:
    with pytest.raises(Malformed, match=r"tar entry .* at offset 512: "):
        walk(member(b"first") + block + END)


@pytest.mark.parametrize("size", [1, 513, 1 << 40, (1 << 63) - 1])
def test_a_size_beyond_the_stream_is_refused(size: int) -> None:
    with pytest.raises(Malformed, match=r"'big'.*truncated"):
        walk(header(b"big", size=base256(size, 12)))


@pytest.mark.parametrize("kind", [b"M", b"N", b"A", b"Z", b"8", b"\xff"])
def test_unknown_types_are_unsupported(kind: bytes) -> None:
    with pytest.raises(Unsupported) as caught:
        walk(member(b"what", kind))
    assert repr(kind.decode("latin-1")) in caught.value.message
    assert "what" in caught.value.message


def test_the_limit_of_entries() -> None:
    data = member(b"a") + member(b"b") + member(b".wh.") + member(b"label", b"V")
    assert len(walk(data, entries=2)) == 2
    with pytest.raises(TooLarge, match="more than 2 entries"):
        walk(data + member(b"c"), entries=2)


def test_messages_do_not_grow_with_names() -> None:
    with pytest.raises(ImgfsError) as caught:
        walk(gnu_long(b"L", b"\xff" * 900_000) + member())
    assert len(caught.value.message) < 2000
