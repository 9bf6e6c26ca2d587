"""The walk against Python's tarfile over generated archives, and against damage to valid ones."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgfs.errors import Malformed, TooLarge, Unsupported
from imgfs.layers.entry import Entry, EntryKind
from imgfs.layers.paths import clean

from .tars import base256, checked, content, gnu_long, header, member, pax, walk, written

KINDS = {
    tarfile.REGTYPE: EntryKind.REGULAR,
    tarfile.AREGTYPE: EntryKind.REGULAR,
    tarfile.DIRTYPE: EntryKind.DIRECTORY,
    tarfile.SYMTYPE: EntryKind.SYMLINK,
    tarfile.LNKTYPE: EntryKind.HARDLINK,
    tarfile.FIFOTYPE: EntryKind.FIFO,
    tarfile.BLKTYPE: EntryKind.BLOCK,
    tarfile.CHRTYPE: EntryKind.CHARACTER,
}


def name_text(limit: int) -> st.SearchStrategy[str]:
    """Names of any bytes but NUL, as tarfile wants them; never of a whiteout, never the root."""
    return (
        st.binary(min_size=1, max_size=limit)
        .map(lambda raw: raw.replace(b"\0", b"0").replace(b".wh.", b".hw.").strip(b"/"))
        .filter(lambda raw: bool(clean(raw)) and len(raw.split(b"/")[-1]) <= 90)
        .map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    )


@st.composite
def members(draw: st.DrawFn, form: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    made: list[tuple[tarfile.TarInfo, bytes]] = []
    wide = form != tarfile.USTAR_FORMAT
    for name in draw(st.lists(name_text(240 if wide else 90), max_size=6)):
        info = tarfile.TarInfo(name)
        info.type = draw(st.sampled_from([kind for kind in KINDS if kind != tarfile.AREGTYPE]))
        info.mode = draw(st.integers(0, 0o7777))
        info.uid = draw(st.integers(0, 2**32 - 2 if wide else 0o7777777))
        info.gid = draw(st.integers(0, 2**32 - 2 if wide else 0o7777777))
        info.mtime = draw(st.integers(-(2**33) if wide else 0, 2**33 - 1))
        data = draw(st.binary(max_size=1500)) if info.type == tarfile.REGTYPE else b""
        info.size = len(data)
        if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info.linkname = draw(name_text(240 if wide else 90))
        if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = draw(st.integers(1, 4095)), draw(st.integers(0, 2**20 - 1))
        if form == tarfile.PAX_FORMAT and draw(st.booleans()):
            key = draw(st.text("abc.äé", min_size=1, max_size=20))
            info.pax_headers = {f"SCHILY.xattr.user.{key}": draw(st.text(min_size=1, max_size=50))}
        made.append((info, data))
    return made


def expected(data: bytes) -> list[Entry]:
    """What tarfile reads, as entries."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        return [expected_entry(info) for info in tar]


def expected_entry(info: tarfile.TarInfo) -> Entry:
    kind = KINDS[info.type]
    link = info.linkname.encode("utf-8", "surrogateescape")
    regular, device = kind is EntryKind.REGULAR, kind in (EntryKind.BLOCK, EntryKind.CHARACTER)
    return Entry(
        clean(info.name.encode("utf-8", "surrogateescape")),
        kind,
        info.mode,
        info.uid,
        info.gid,
        int(info.mtime) * 10**9,
        info.size if regular else 0,
        info.offset_data if regular else 0,
        clean(link) if kind is EntryKind.HARDLINK else link,
        info.devmajor if device else 0,
        info.devminor if device else 0,
        tuple(
            (
                key.removeprefix("SCHILY.xattr.").encode("utf-8", "surrogateescape"),
                value.encode("utf-8", "surrogateescape"),
            )
            for key, value in info.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        ),
    )


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.data())
def test_entries_equal_tarfile_at_every_split(form: int, data: st.DataObject) -> None:
    made = data.draw(members(form))
    tar = written(made, form)
    entries = walk(tar)
    assert entries == expected(tar)
    assert [content(tar, entry) for entry in entries if entry.kind is EntryKind.REGULAR] == [
        payload for info, payload in made if info.isreg()
    ]
    cuts = data.draw(st.lists(st.integers(0, len(tar)), max_size=12))
    assert walk(tar, cuts=cuts) == entries


def sparse_member() -> bytes:
    block = bytearray(header(b"s", b"S", size=6, magic=b"ustar  \0"))
    block[386:410] = base256(10, 12) + base256(6, 12)
    block[482:495] = b"\1" + b"00000000050\0"
    return checked(bytes(block)) + bytes(512) + b"abcdef" + bytes(506)


VALID = (
    pax((b"path", b"a" * 120), (b"mtime", b"12.5"), (b"SCHILY.xattr.user.k", b"v"), (b"size", b"3"))
    + member(data=b"abc", size=0)
    + gnu_long(b"L", b"n" * 130)
    + member(b"d/", b"5")
    + sparse_member()
    + pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"40"))
    + member(b"t", data=b"1\n10\n6\n".ljust(512, b"\0") + b"abcdef")
    + pax((b"GNU.sparse.map", b"0,1,8,2"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.size", b"10"))
    + member(b"u", data=b"xyz")
    + member(b"c", b"3", major=1, minor=3)
    + bytes(1024)
)


def told_or_walked(data: bytes, cuts: Iterable[int] = ()) -> list[Entry]:
    """The entries of `data`, none if it is refused in the walk's own words."""
    try:
        return walk(data, cuts=cuts)
    except (Malformed, TooLarge, Unsupported) as error:
        return (
            [] if error.message.startswith("tar entry ") else [Entry(error.message.encode() + b"\0", EntryKind.REGULAR)]
        )


def mend(damaged: bytearray) -> bytes:
    """Give every block that sits where a header was its right checksum, so that damage gets past it."""
    for at in range(0, len(VALID), 512):
        if VALID[at + 257 : at + 262] == b"ustar":
            damaged[at : at + 512] = checked(bytes(damaged[at : at + 512]))
    return bytes(damaged)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.sampled_from(b"\0\1\x809-,= \nxLKSg/.\xff") | st.integers(0, 255)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_damage_is_told_or_harmless(flips: list[tuple[int, int]], mended: bool) -> None:
    damaged = bytearray(VALID)
    for at, byte in flips:
        damaged[at] = byte
    data = mend(damaged) if mended else bytes(damaged)
    for entry in told_or_walked(data, [700, 701, 3000]):
        assert 0 <= entry.size < 2**63
        assert b"\0" not in entry.path
        assert entry.offset + (entry.size if entry.extents is None else 0) <= len(data)
        assert all(extent.offset + extent.length <= len(data) for extent in entry.extents or ())


@settings(max_examples=100)
@given(st.binary(max_size=3000))
def test_noise_is_told_or_harmless(noise: bytes) -> None:
    for data in (noise, member(b"p", b"x", noise[:2000]) + member(), member(b"p", b"L", noise) + member()):
        assert all(b"\0" not in entry.path for entry in told_or_walked(data))


@pytest.mark.parametrize(
    "claim",
    [
        header(b"x", b"x", size=2**20),
        header(b"f", size=base256(2**62, 12)),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % 2**62))
        + header(size=base256(2**61, 12))
        + b"9999999\n".ljust(512, b"0"),
    ],
)
def test_claims_allocate_nothing(claim: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="truncated"):
            walk(claim)
        assert tracemalloc.get_traced_memory()[1] < 512 << 10
    finally:
        tracemalloc.stop()
