"""tarfile and GNU tar confirm that layers contain their entries. Layers have the same bytes every time."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from imgfs.testing.entries import SparseStyle
from imgfs.testing.images import (
    Compression,
    DeviceFile,
    Dir,
    Entry,
    Fifo,
    File,
    Format,
    Hardlink,
    Opaque,
    SparseFile,
    Symlink,
    Whiteout,
    capability,
    compress,
    layer_tar,
    oddities_image,
)
from tests.support.programs import run

FORMATS: tuple[Format, ...] = ("pax", "gnu", "ustar")
EVERYTHING: list[Entry] = [
    Dir("d", mode=0o1777),
    File("d/file", b"content", mode=0o4755, uid=1, gid=2),
    Symlink("d/link", "file"),
    Hardlink("d/hard", "d/file"),
    Fifo("d/fifo"),
    DeviceFile("d/null", "character", 1, 3),
    DeviceFile("d/loop", "block", 7, 300),
]


def members(tar: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        return {one.name: one for one in archive}


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_is_written_in_every_format(format: Format) -> None:
    found = members(layer_tar(EVERYTHING, format))
    assert found["d"].isdir()
    assert found["d"].mode == 0o1777
    assert (found["d/file"].size, found["d/file"].mode, found["d/file"].uid, found["d/file"].gid) == (7, 0o4755, 1, 2)
    assert (found["d/link"].issym(), found["d/link"].linkname) == (True, "file")
    assert (found["d/hard"].islnk(), found["d/hard"].linkname) == (True, "d/file")
    assert found["d/fifo"].isfifo()
    assert (found["d/null"].ischr(), found["d/null"].devmajor, found["d/null"].devminor) == (True, 1, 3)
    assert (found["d/loop"].isblk(), found["d/loop"].devmajor, found["d/loop"].devminor) == (True, 7, 300)


def test_whiteouts_have_the_names_of_the_specification() -> None:
    tar = layer_tar([Whiteout("top"), Whiteout("a/b/c"), Opaque("a/b")])
    assert list(members(tar)) == [".wh.top", "a/b/.wh.c", "a/b/.wh..wh..opq"]


@pytest.mark.parametrize("format", ["pax", "gnu"])
@pytest.mark.parametrize("name", [b"\xff\xfe", "ü".encode(), b"new\nline", b"n" * 255, b"l/" * 200 + b"x"])
def test_names_are_kept_byte_by_byte(format: Format, name: bytes) -> None:
    (found,) = members(layer_tar([Symlink(name, name)], format)).values()
    assert found.name.encode("utf-8", "surrogateescape") == name
    assert found.linkname.encode("utf-8", "surrogateescape") == name


def test_pax_holds_nanoseconds_big_owners_and_attributes() -> None:
    xattrs = {"user.text": b"value", "security.capability": capability(1 << 13)}
    entry = File("f", uid=3_000_000_000, gid=4_000_000_000, mtime_ns=1_234_567_890_987_654_321, xattrs=xattrs)
    found = members(layer_tar([entry]))["f"]
    assert (found.uid, found.gid) == (3_000_000_000, 4_000_000_000)
    assert found.pax_headers["mtime"] == "1234567890.987654321"
    stored = {name: found.pax_headers[f"SCHILY.xattr.{name}"].encode("utf-8", "surrogateescape") for name in xattrs}
    assert stored == xattrs


def test_gnu_holds_big_owners() -> None:
    assert members(layer_tar([File("f", uid=3_000_000_000)], "gnu"))["f"].uid == 3_000_000_000


def test_an_entry_that_ustar_cannot_express_is_an_error() -> None:
    with pytest.raises(ValueError, match="too long"):
        layer_tar([File("n" * 101)], "ustar")


@pytest.mark.parametrize("style", ["gnu", "pax-0.1", "pax-1.0"])
@pytest.mark.parametrize("extents", [0, 1, 4, 5, 25, 26, 60])
def test_gnu_tar_and_tarfile_unpack_sparse_files(tmp_path: Path, style: SparseStyle, extents: int) -> None:
    file = SparseFile("d/f", 1 << 20, tuple((at * 8192 + 512, b"%07d!" % at * 64) for at in range(extents)), style)
    tar = layer_tar([Dir("d"), file, File("after", b"whole")], "gnu" if style == "gnu" else "pax")
    (tmp_path / "layer.tar").write_bytes(tar)
    run("tar", "-xf", tmp_path / "layer.tar", "-C", tmp_path)
    assert (tmp_path / "d/f").read_bytes() == file.content
    assert (tmp_path / "after").read_bytes() == b"whole"
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        reader = archive.extractfile("d/f")
        assert reader is not None
        assert reader.read() == file.content


@pytest.mark.parametrize("style", ["gnu", "pax-0.1", "pax-1.0"])
def test_a_sparse_file_may_end_in_data(tmp_path: Path, style: SparseStyle) -> None:
    file = SparseFile("f", 9000, ((1024, b"x" * 512), (8192, b"y" * 808)), style)
    (tmp_path / "layer.tar").write_bytes(layer_tar([file], "gnu" if style == "gnu" else "pax"))
    run("tar", "-xf", tmp_path / "layer.tar", "-C", tmp_path)
    assert (tmp_path / "f").read_bytes() == file.content


def test_a_pax_sparse_file_in_another_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the pax format, got ustar"):
        layer_tar([SparseFile("f", 10)], "ustar")


def test_gnu_tar_lists_every_layer_of_the_oddities(tmp_path: Path) -> None:
    for number, layer in enumerate(oddities_image().layers):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(layer.tar)
        assert len(run("tar", "-tf", path, "--quoting-style=escape").splitlines()) == len(_headers(layer.tar))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_the_standard_programs_decompress_each_compression(tmp_path: Path, compression: Compression) -> None:
    data = layer_tar([File("f", b"x" * 100_000)])
    blob = compress(data, compression)
    (tmp_path / "blob").write_bytes(blob)
    assert blob == compress(data, compression)
    assert (blob if compression == "none" else run(compression, "-dc", tmp_path / "blob")) == data


def test_gzip_output_has_no_timestamp() -> None:
    assert compress(b"data", "gzip")[4:8] == bytes(4)
    assert gzip.decompress(compress(b"data", "gzip")) == b"data"


def _headers(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getmembers()
