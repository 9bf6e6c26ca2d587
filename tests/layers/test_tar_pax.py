"""PAX extended headers in the walk: what each record changes, what is refused, what is ignored."""

from __future__ import annotations

import pytest

from imgfs.errors import Malformed, TooLarge
from imgfs.layers.entry import EntryKind

from .tars import END, GNU, base256, gnu_long, member, only, pax, walk

X = b"SCHILY.xattr."


def test_records_override_the_header() -> None:
    entry = only(
        pax((b"path", b"long/name"), (b"uid", b"4294967294"), (b"gid", b"7"), (b"size", b"3"), (b"mtime", b"1.25"))
        + member(b"short", data=b"abc", size=0)
    )
    assert (entry.path, entry.uid, entry.gid, entry.size, entry.mtime) == (
        b"long/name",
        4294967294,
        7,
        3,
        1_250_000_000,
    )


def test_linkpath_for_both_kinds_of_link() -> None:
    assert only(pax((b"linkpath", b"../t")) + member(b"s", b"2", link=b"x")).link == b"../t"
    assert only(pax((b"linkpath", b"../t")) + member(b"h", b"1", link=b"x")).link == b"t"


def test_solaris_headers_count_as_pax() -> None:
    assert only(pax((b"path", b"long"), kind=b"X") + member(b"short")).path == b"long"


def test_an_empty_value_deletes() -> None:
    entry = only(pax((b"path", b"other"), (b"path", b""), (b"uid", b"")) + member(b"own", uid=5))
    assert (entry.path, entry.uid) == (b"own", 5)


def test_an_empty_value_deletes_every_record_but_an_attribute() -> None:
    """Only an extended attribute may be empty, as containerd and GNU tar have it; see
    tests/mount/test_oracles.py.
    """
    keys = (b"path", b"uid", b"gid", b"size", b"mtime", b"GNU.sparse.map", b"GNU.sparse.numblocks")
    entry = only(pax(*((key, b"") for key in keys)) + member(b"own", uid=5, gid=6, data=b"abc", mtime=7))
    assert (entry.path, entry.uid, entry.gid, entry.size, entry.mtime) == (b"own", 5, 6, 3, 7_000_000_000)
    assert only(pax((b"linkpath", b"")) + member(b"s", b"2", link=b"x")).link == b"x"
    assert only(pax((X + b"user.a", b"")) + member(b"own")).xattrs == ((b"user.a", b""),)


def test_the_last_of_two_records_counts_also_if_it_is_empty() -> None:
    assert only(pax((b"path", b"a"), (b"path", b"")) + member(b"own")).path == b"own"
    assert only(pax((X + b"user.a", b"v"), (X + b"user.a", b"")) + member(b"own")).xattrs == ((b"user.a", b""),)
    assert only(pax((X + b"user.a", b""), (X + b"user.a", b"v")) + member(b"own")).xattrs == ((b"user.a", b"v"),)


def test_an_empty_value_in_a_global_header_changes_nothing() -> None:
    data = pax((X + b"user.a", b""), (b"path", b""), kind=b"g") + pax((X + b"user.a", b"v")) + member(b"own")
    assert (only(data).path, only(data).xattrs) == (b"own", ((b"user.a", b"v"),))


def test_a_header_counts_for_one_entry_only() -> None:
    assert [entry.path for entry in walk(pax((b"path", b"first")) + member(b"a") + member(b"b"))] == [b"first", b"b"]


def test_the_last_of_two_headers_counts() -> None:
    data = pax((b"path", b"one"), (b"uid", b"9")) + pax((b"path", b"two")) + member(b"own")
    assert (only(data).path, only(data).uid) == (b"two", 0)


def test_gnu_long_names_win() -> None:
    assert only(gnu_long(b"L", b"gnu") + pax((b"path", b"pax")) + member(b"own", magic=GNU)).path == b"gnu"


def test_global_headers_are_read_and_ignored() -> None:
    data = pax((b"path", b"no"), (b"uid", b"9"), kind=b"g") + member(b"own")
    assert (only(data).path, only(data).uid) == (b"own", 0)
    assert only(pax((b"path", b"no")) + pax((b"comment", b"c"), kind=b"g") + member(b"own")).path == b"own"
    with pytest.raises(Malformed):
        walk(member(b"pax_global_header", b"g", b"nonsense") + member())


def test_a_header_without_an_entry_is_nothing() -> None:
    assert walk(pax((b"path", b"x")) + END) == []


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"0", 0),
        (b"5.", 5_000_000_000),
        (b"1.000000001", 1_000_000_001),
        (b"1.0000000019", 1_000_000_001),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -500_000_000),
        (b"9223372036.854775807", (1 << 63) - 1),
        (b"9223372036.854775808", (1 << 63) - 1),
        (b"-99999999999999999999", -(1 << 63)),
    ],
)
def test_times(text: bytes, nanoseconds: int) -> None:
    assert only(pax((b"mtime", text)) + member()).mtime == nanoseconds


@pytest.mark.parametrize(
    "records",
    [
        [(b"mtime", b"1,5")],
        [(b"mtime", b"-")],
        [(b"mtime", b"+1")],
        [(b"mtime", b"9" * 41)],
        [(b"uid", b"-1")],
        [(b"uid", b"4294967295")],
        [(b"gid", b"x")],
        [(b"gid", b"1_0")],
        [(b"size", b"-1")],
        [(b"size", b"9223372036854775808")],
        [(b"size", b"9" * 5000)],
        [(b"path", b"a\0b")],
        [(b"linkpath", b"a\0b")],
        [(b"GNU.sparse.name", b"a\0b")],
        [(b"na\0me", b"x")],
        [(X, b"x")],
        [(X + b"user." + b"n" * 251, b"x")],
    ],
)
def test_bad_values_are_refused(records: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed, match="offset"):
        walk(pax(*records) + member(data=b"x") + END)


@pytest.mark.parametrize(
    "payload",
    [
        b"x",
        b"12 path=file",
        b"99 path=file\n",
        b"5 path=file\n",
        b"0 path=file\n",
        b"-9 path=file\n",
        b"+13 path=file\n",
        b"13  path=file",
        b"4 =\n",
        b"5 =a\n",
        b"9 pathxx\n",
        b"9999999999999 path=file\n",
        b" 13 path=file\n",
        b"13 path=file\n\0",
    ],
)
def test_broken_records_are_refused(payload: bytes) -> None:
    with pytest.raises(Malformed, match="PAX record"):
        walk(member(b"p", b"x", payload) + member())


def test_xattrs_are_kept_in_order_but_for_those_that_are_obeyed() -> None:
    pairs = [
        (b"user.b", b"1\0\n="),
        (b"trusted.overlay.opaque", b"y"),
        (b"user.overlay.redirect", b"/"),
        (b"user.a", b"2"),
    ]
    data = pax(*((X + name, value) for name, value in pairs)) + member(b"d", b"5")
    assert only(data).xattrs == ((b"user.b", b"1\0\n="), (b"user.a", b"2"))


CAPABILITIES = [b"\0\0\0\x01" + bytes(8), b"\1\0\0\x02" + bytes(16), b"\0\0\0\x03" + bytes(20)]


@pytest.mark.parametrize(
    "value", [*CAPABILITIES, b"\0\0\0\x02" + bytes(8), b"\2\0\0\x02" + bytes(16), b"\0\0\0\x04" + bytes(20), b"x"]
)
def test_only_wellformed_capabilities_are_kept(value: bytes) -> None:
    entry = only(pax((X + b"security.capability", value)) + member())
    assert bool(entry.xattrs) is (value in CAPABILITIES)


@pytest.mark.parametrize(
    ("value", "good"),
    [(b"\2\0\0\0", True), (b"\2\0\0\0" + bytes(16), True), (b"\1\0\0\0", False), (b"\2\0\0\0x", False)],
)
@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"system.posix_acl_default"])
def test_only_wellformed_acls_are_kept(name: bytes, value: bytes, good: bool) -> None:
    assert bool(only(pax((X + name, value)) + member()).xattrs) is good


def test_xattrs_that_no_filesystem_here_can_keep_are_left_out() -> None:
    data = pax((X + b"com.apple.quarantine", b"0081"), (X + b"system.nfs4_acl", b"x"), (X + b"user.a", b"1"))
    assert only(data + member()).xattrs == ((b"user.a", b"1"),)


def test_the_limits_of_xattrs() -> None:
    assert len(only(pax((X + b"user.k", b"v" * 65536)) + member()).xattrs[0][1]) == 65536
    assert only(pax((X + b"user." + b"n" * 250, b"v")) + member()).xattrs
    for size in (65537, 1 << 19):
        with pytest.raises(TooLarge, match="user"):
            walk(pax((X + b"user.k", b"v" * size)) + member())


def test_the_limit_of_extended_headers_of_one_entry() -> None:
    assert only(gnu_long(b"L", b"a\0" + b"x" * (2**20 - 3)) + member()).path == b"a"
    with pytest.raises(TooLarge, match="extended headers"):
        walk(gnu_long(b"L", b"a\0" + b"x" * (2**20 - 2)) + member())
    with pytest.raises(TooLarge, match="extended headers"):
        walk(gnu_long(b"L", b"a\0" + b"x" * 2**19) + gnu_long(b"K", b"a\0" + b"x" * 2**19) + member())
    with pytest.raises(TooLarge, match="extended headers"):
        walk(member(b"claim", b"x", size=base256(2**60, 12)))


def test_the_limit_of_what_all_entries_hold() -> None:
    data = b"".join(pax((X + b"user.k", b"v" * 100)) + member(b"%d" % i, b"5") for i in range(10))
    assert len(walk(data, metadata=1070)) == 10
    with pytest.raises(TooLarge, match="exceed 1069"):
        walk(data, metadata=1069)


def test_a_long_name_for_a_directory_of_the_oldest_kind() -> None:
    assert only(pax((b"path", b"dir/")) + member(b"d", b"\0")).kind is EntryKind.DIRECTORY
