"""Decompressors: every split, truncation, garbage, members and frames, bombs."""

from __future__ import annotations

import contextlib
import gzip
import random
import subprocess
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import Invalid, Malformed, TooLarge, Unsupported
from imgfs.layers.compression import BUILT_IN, PIECE_MAX, Compression, Compressions, Decompressor, Stored
from imgfs.oci.descriptor import OCI_LAYER

from .tars import pieces

TEXT = b"".join(b"line %d of some text\n" % (i * i % 977) for i in range(300))
SKIPPABLE = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"12345"


def pack(kind: str, data: bytes) -> bytes:
    return gzip.compress(data, mtime=0) if kind == "gzip" else zstd.compress(data)


def open_decompressor(kind: str) -> Decompressor:
    return next(one.open() for one in BUILT_IN if one.word == kind)


def unpack(kind: str, data: bytes, cuts: Iterable[int] = ()) -> bytes:
    decompressor = open_decompressor(kind)
    out = b"".join(bytes(made) for piece in pieces(data, cuts) for made in decompressor.feed(piece))
    decompressor.close()
    return out


BOTH = pytest.mark.parametrize("kind", ["gzip", "zstd"])


def test_plain_streams_pass_through_in_bounded_pieces() -> None:
    data = bytes(2 * PIECE_MAX + 5)
    assert [len(piece) for piece in open_decompressor("none").feed(data)] == [PIECE_MAX, PIECE_MAX, 5]
    assert unpack("none", TEXT, [7]) == TEXT
    assert unpack("none", b"") == b""


@BOTH
def test_a_built_in_format_is_detected_by_its_first_bytes(kind: str) -> None:
    table = Compressions(BUILT_IN)
    assert table.detect(pack(kind, TEXT)[: table.magic_size]).word == kind
    assert table.detect(TEXT[: table.magic_size]).word == "none"
    assert table.detect(b"").word == "none"


def test_the_longest_magic_wins_and_a_format_without_magic_is_never_detected() -> None:
    short, long = Compression("short", Stored, b"ab"), Compression("long", Stored, b"abc")
    table = Compressions([Compression("silent", Stored), short, long])
    assert table.magic_size == 3
    assert [table.detect(head).word for head in (b"abc", b"abd", b"x")] == ["long", "short", "none"]


@BOTH
def test_every_split_gives_the_same_bytes(kind: str) -> None:
    packed = pack(kind, TEXT) + pack(kind, b"") + pack(kind, TEXT[:100])
    for cut in range(len(packed) + 1):
        assert unpack(kind, packed, [cut]) == TEXT + TEXT[:100]
    assert unpack(kind, packed, range(len(packed))) == TEXT + TEXT[:100]


@BOTH
def test_every_truncation_is_told(kind: str) -> None:
    packed = pack(kind, TEXT)
    for end in range(len(packed)):
        with pytest.raises(Malformed, match="truncated"):
            unpack(kind, packed[:end])
        with pytest.raises(Malformed, match=r"member 2.*truncated"):
            unpack(kind, packed + packed[: end or 1])


@BOTH
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_pieces_of_any_bytes_like_type(kind: str, form: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    assert b"".join(bytes(piece) for piece in open_decompressor(kind).feed(form(pack(kind, TEXT)))) == TEXT


@BOTH
def test_garbage_is_told(kind: str) -> None:
    with pytest.raises(Malformed, match=f"{kind} member 1"):
        unpack(kind, b"this is no compressed stream at all")
    for garbage in (b"trailing garbage", b"\x1f", b"\x28\xb5\x2f"):
        with pytest.raises(Malformed, match=f"{kind} .*member 2"):
            unpack(kind, pack(kind, TEXT) + garbage)


@BOTH
@settings(max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_damage_is_told_or_harmless(kind: str, where: int, flip: int) -> None:
    packed = bytearray(pack(kind, TEXT))
    packed[where % len(packed)] ^= flip
    with contextlib.suppress(Malformed):
        assert unpack(kind, bytes(packed)) is not None


@pytest.mark.parametrize("at", [-1, -5])
def test_a_wrong_gzip_trailer_is_told(at: int) -> None:
    packed = bytearray(pack("gzip", TEXT))
    packed[at] ^= 1
    with pytest.raises(Malformed, match="member 1"):
        unpack("gzip", bytes(packed))


@pytest.mark.parametrize("zeros", [1, 511, 300_000])
def test_zeros_may_pad_gzip_but_only_at_the_end(zeros: int) -> None:
    packed = pack("gzip", TEXT) + bytes(zeros)
    assert unpack("gzip", packed, [len(packed) - zeros]) == TEXT
    for more in (b"x", pack("gzip", TEXT)):
        for cuts in ([], [len(packed)]):
            with pytest.raises(Malformed, match="padding"):
                unpack("gzip", packed + more, cuts)
    with pytest.raises(Malformed):
        unpack("gzip", bytes(zeros))


def with_fields(flags: int, *, extra: bytes = b"abcd", text: bytes = b"name", data: bytes = TEXT) -> bytes:
    """A member with the optional header fields of `flags`, in stored blocks."""
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    head += len(extra).to_bytes(2, "little") + extra if flags & 4 else b""
    head += text + b"\0" if flags & 8 else b""
    head += b"a comment\0" if flags & 16 else b""
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") if flags & 2 else b""
    deflate = zlib.compressobj(0, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    return head + body + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_optional_gzip_header_fields_at_every_split(flags: int) -> None:
    packed = with_fields(flags) + with_fields(flags)
    assert gzip.decompress(packed) == TEXT * 2
    for cut in range(60):
        assert unpack("gzip", packed, [cut, len(packed) // 2 + cut]) == TEXT * 2
    assert unpack("gzip", packed, range(len(packed))) == TEXT * 2


def test_long_gzip_headers() -> None:
    packed = with_fields(4 | 8, extra=bytes(65535), text=b"n" * 60_000, data=b"x")
    assert unpack("gzip", packed, [70_000]) == b"x"
    with pytest.raises(Malformed, match="header of more than"):
        unpack("gzip", with_fields(8, text=b"n" * 140_000))


def test_skippable_frames_are_skipped() -> None:
    packed = pack("zstd", TEXT)
    for data in (SKIPPABLE + packed, packed + SKIPPABLE, packed[:0] + SKIPPABLE * 3 + packed + SKIPPABLE * 2):
        assert unpack("zstd", data, range(0, len(data), 3)) == TEXT
    assert unpack("zstd", SKIPPABLE) == b""
    with pytest.raises(Malformed, match="truncated"):
        unpack("zstd", packed + SKIPPABLE[:-1])


def test_a_zstd_window_beyond_the_limit_is_refused() -> None:
    def with_window(log: int) -> bytes:
        return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(log - 10) << 3]) + b"\x01\x00\x00"

    assert unpack("zstd", with_window(27)) == b""
    with pytest.raises(TooLarge, match="window"):
        unpack("zstd", with_window(28))


@BOTH
def test_a_bomb_comes_out_in_bounded_pieces_and_memory(kind: str) -> None:
    one = pack(kind, bytes(32 << 20))
    tracemalloc.start()
    try:
        total = 0
        for piece in open_decompressor(kind).feed(one * 2):
            assert len(piece) <= PIECE_MAX
            total += len(piece)
        assert total == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@BOTH
@pytest.mark.parametrize("size", [PIECE_MAX - 1, PIECE_MAX, PIECE_MAX + 1, 3 * PIECE_MAX])
def test_output_of_whole_pieces_is_not_left_behind(kind: str, size: int) -> None:
    noise = random.Random(size).randbytes(size // 2)
    data = noise + bytes(size - len(noise))
    packed = pack(kind, data)
    for cuts in ([], [len(packed) - 9], [len(packed) - 1], range(0, len(packed), 65_536)):
        assert unpack(kind, packed, cuts) == data


@BOTH
def test_many_small_members(kind: str) -> None:
    parts = [b"%d," % i for i in range(20_000)]
    assert unpack(kind, b"".join(pack(kind, part) for part in parts)) == b"".join(parts)


@pytest.mark.parametrize(("kind", "command"), [("gzip", ["gzip", "-c"]), ("zstd", ["zstd", "-q", "-c", "--long=27"])])
def test_streams_of_the_command_line_tools(kind: str, command: list[str]) -> None:
    data = TEXT * 300
    for level in ("-1", "-9"):
        packed = subprocess.run([*command, level], input=data, check=True, stdout=subprocess.PIPE).stdout
        assert unpack(kind, packed, range(0, len(packed), 1000)) == data


@BOTH
@settings(max_examples=50)
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.data())
def test_random_members_at_random_splits(kind: str, parts: list[bytes], data: st.DataObject) -> None:
    packed = b"".join(pack(kind, part) for part in parts)
    cuts = data.draw(st.lists(st.integers(0, len(packed)), max_size=10))
    assert unpack(kind, packed, cuts) == b"".join(parts)


def test_a_layer_has_the_compression_of_its_media_types_word() -> None:
    mine = Compression("brotli", Stored)
    found = Compressions([mine, Compression("none", Stored)])
    assert found.of(f"{OCI_LAYER}+brotli") is mine
    assert found.of("application/vnd.docker.image.rootfs.diff.tar.brotli") is mine
    assert found.of(OCI_LAYER).word == "none"


@pytest.mark.parametrize(
    ("media_type", "said"),
    [
        (f"{OCI_LAYER}+gzip", "compressions here are none, zstd"),
        ("application/x-bz2", "imgfs reads tars"),
    ],
)
def test_a_layer_of_another_compression_is_refused(media_type: str, said: str) -> None:
    found = Compressions([Compression("zstd", Stored), Compression("none", Stored)])
    with pytest.raises(Unsupported, match=said):
        found.of(media_type)


def test_two_compressions_of_one_word_are_refused() -> None:
    with pytest.raises(Invalid, match="'gzip': two plugins"):
        Compressions([Compression("gzip", Stored), Compression("gzip", Stored)])
