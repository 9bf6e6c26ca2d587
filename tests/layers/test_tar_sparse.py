"""Sparse files: GNU tar's own archives read back through their extents, and hostile maps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imgfs.errors import Malformed, TooLarge, Unsupported
from imgfs.layers.entry import Extent

from .tars import END, GNU, base256, checked, content, gnu_long, header, member, octal, only, padded, pax, walk

FORMATS = ["--format=gnu", *(f"--format=posix --sparse-version={version}" for version in ("0.0", "0.1", "1.0"))]


def make_sparse(path: Path, regions: int, tail: int) -> None:
    with path.open("wb") as file:
        for region in range(regions):
            file.seek(8192 * 2 * region + 8192)
            file.write(bytes([1 + region % 250]) * 4096)
        file.truncate(8192 * 2 * regions + tail)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("regions", "tail"), [(0, 100_000), (1, 0), (3, 777), (5, 8192), (60, 1), (400, 0)])
def test_archives_of_gnu_tar(tmp_path: Path, form: str, regions: int, tail: int) -> None:
    name = "deep/" * 30 + "file"
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    make_sparse(path, regions, tail)
    (tmp_path / "next").write_bytes(b"next")
    command = ["tar", "--sparse", *form.split(), "--hole-detection=raw", "-C", str(tmp_path), "-cf", "-", name, "next"]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    sparse, following = walk(data)
    assert sparse.path == os.fsencode(name)
    assert sparse.extents is not None
    assert content(data, sparse) == path.read_bytes()
    assert content(data, following) == b"next"
    for cut in range(0, min(len(data), 8192), 97):
        assert walk(data, cuts=[cut, cut + 300]) == [sparse, following]


def old(pairs: list[tuple[int, int]], real: int, data: bytes, *, more: bytes = b"\0", magic: bytes = GNU) -> bytes:
    """An S header with up to four regions."""
    block = bytearray(header(b"s", b"S", size=len(data), magic=magic))
    area = b"".join(base256(number, 12) for pair in pairs for number in pair)
    block[386 : 386 + len(area)] = area
    block[482:483] = more
    block[483:495] = octal(real, 12)
    return checked(bytes(block))


def test_old_regions_become_extents() -> None:
    data = old([(10, 4), (20, 0), (30, 2)], 40, b"abcdef") + padded(b"abcdef")
    entry = only(data)
    assert entry.extents == (Extent(10, 512, 4), Extent(30, 516, 2))
    assert content(data, entry) == bytes(10) + b"abcd" + bytes(16) + b"ef" + bytes(8)


@pytest.mark.parametrize(
    "pairs",
    [[(0, 7)], [(0, 5)], [(2, 3), (0, 3)], [(0, 4), (3, 2)], [(35, 6)], [(-1, 6)], [(0, -1), (0, 7)], [(2**62, 6)]],
)
def test_maps_out_of_order_or_bounds_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(Malformed, match="sparse"):
        walk(old(pairs, 40, b"abcdef") + padded(b"abcdef"))
    text = ",".join(f"{at},{length}" for at, length in pairs).encode()
    records = (b"GNU.sparse.size", b"40"), (b"GNU.sparse.numblocks", b"%d" % len(pairs)), (b"GNU.sparse.map", text)
    with pytest.raises(Malformed, match="sparse"):
        walk(pax(*records) + member(data=b"abcdef"))


def test_an_old_map_needs_the_magic_and_all_its_blocks() -> None:
    with pytest.raises(Malformed, match="magic"):
        walk(old([(0, 1)], 1, b"a", magic=b"ustar\x0000") + padded(b"a"))
    for rest in (b"", bytes(504) + b"\1" + bytes(7)):
        with pytest.raises(Malformed, match="truncated"):
            walk(old([], 0, b"", more=b"\1") + rest)


def test_the_limit_of_old_maps() -> None:
    continued = bytes(504) + b"\1" + bytes(7)
    assert only(old([], 0, b"", more=b"\1") + continued * 2047 + bytes(512)).extents == ()
    with pytest.raises(TooLarge, match="sparse map"):
        walk(old([], 0, b"", more=b"\1") + continued * 2048 + bytes(512))


def version_1(text: bytes, data: bytes, real: int = 40) -> bytes:
    records = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % real)
    return pax(*records, (b"GNU.sparse.name", b"real")) + member(b"GNUSparseFile.0/real", data=padded(text) + data)


def test_a_map_in_the_payload() -> None:
    data = version_1(b"1\n10\n6\n", b"abcdef")
    assert only(data).path == b"real"
    assert content(data, only(data)) == bytes(10) + b"abcdef" + bytes(24)
    assert only(version_1(b"0\n", b"")).extents == ()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b"x\n0\n6\n",
        b"-1\n",
        b"1\n0\n-6\n",
        b"1\n0\n",
        b"2\n0\n6\n",
        b"9" * 21 + b"\n",
        b"99999999999\n0\n6\n",
    ],
)
def test_broken_maps_in_the_payload_are_refused(text: bytes) -> None:
    with pytest.raises(Malformed):
        walk(version_1(text, b"abcdef"))


def test_the_limit_of_maps_in_the_payload() -> None:
    zeros = b"0\n0\n" * 262_000
    assert only(version_1(b"262000\n" + zeros, b"")).extents == ()
    with pytest.raises(TooLarge, match="sparse map"):
        walk(version_1(b"262200\n" + zeros + b"0\n0\n" * 200, b""))


@pytest.mark.parametrize(("major", "minor"), [(b"1", b"1"), (b"2", b"0"), (b"0", b"2"), (b"1", b"")])
def test_other_versions_are_unsupported(major: bytes, minor: bytes) -> None:
    with pytest.raises(Unsupported, match="sparse"):
        walk(pax((b"GNU.sparse.major", major), (b"GNU.sparse.minor", minor)) + member())


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"1")],
        [(b"GNU.sparse.numbytes", b"0")],
        [(b"GNU.sparse.offset", b"0,1"), (b"GNU.sparse.numbytes", b"1")],
        [(b"GNU.sparse.map", b"0,1,2"), (b"GNU.sparse.numblocks", b"1")],
        [(b"GNU.sparse.map", b"0,1")],
        [(b"GNU.sparse.map", b"0,,1,1"), (b"GNU.sparse.numblocks", b"2")],
        [(b"GNU.sparse.size", b"9" * 19), (b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"1")],
    ],
)
def test_broken_maps_in_records_are_refused(records: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed):
        walk(pax(*records) + member(data=b"x"))


def test_only_regular_files_are_sparse() -> None:
    with pytest.raises(Malformed, match="regular file"):
        walk(pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"1")) + member(b"d", b"5"))


def test_names_of_old_sparse_files_are_not_prefixed_by_their_map() -> None:
    data = gnu_long(b"L", b"n" * 200) + old([(0, 1)], 1, b"a") + padded(b"a") + END
    assert walk(data)[0].path == b"n" * 200
