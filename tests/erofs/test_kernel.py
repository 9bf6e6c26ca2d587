"""Images in the kernel: mounted, and compared with the tree entry by entry."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from imgfs.erofs.format import blocks
from imgfs.erofs.inode import DataDevice
from imgfs.erofs.writer import build
from imgfs.layers.tree import MergedNode, merge
from imgfs.testing.images import oddities_image
from tests.erofs.scene import BLOCK, Data, differences, directory, mounted, node, symlink, tree
from tests.layers.tars import walk

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
MIXED = ((b"user.note", b"\0\xff"), (b"trusted.t", b"t"), (b"security.capability", CAPABILITY), (b"user.empty", b""))
ACLS = ((b"system.posix_acl_access", ACL), (b"system.posix_acl_default", ACL))


def test_every_type_with_all_its_attributes(tmp_path: Path) -> None:
    data = Data()
    children = {
        b"regular": data.file(b"hello\n", uid=1000, gid=0xFFFFFFFE),
        b"empty": data.file(b""),
        b"setuid": data.file(b"#!/bin/sh\n", xattrs=MIXED),
        b"directory": directory({b"below": data.file(b"x")}, uid=0xFFFFFFFE),
        b"nothing in it": directory({}, xattrs=ACLS),
        b"link": symlink(b"../somewhere", uid=7, xattrs=((b"trusted.l", b"1"),)),
        b"null": node(stat.S_IFCHR | 0o666, rdev=(1, 3)),
        b"large numbers": node(stat.S_IFBLK | 0o600, rdev=(4095, (1 << 20) - 1)),
        b"minor over a byte": node(stat.S_IFCHR | 0o600, rdev=(259, 256)),
        b"fifo": node(stat.S_IFIFO | 0o644),
        b"socket": node(stat.S_IFSOCK | 0o755, xattrs=((b"trusted.s", b""),)),
    }
    children[b"setuid"].mode = stat.S_IFREG | 0o6751
    children[b"directory"].mode = stat.S_IFDIR | 0o1777
    assert differences(tree(children, xattrs=MIXED, gid=5), data, tmp_path) == []


@pytest.mark.parametrize("mtime", [0, 1, -1, -2_000_000_000, (1 << 63) - 1, -(1 << 63), 999_999_999])
def test_mtimes_before_and_long_after_the_epoch(mtime: int, tmp_path: Path) -> None:
    assert differences(tree({b"f": node(stat.S_IFREG, mtime=mtime)}), Data(), tmp_path) == []


def test_a_file_of_many_names_is_one_inode(tmp_path: Path) -> None:
    data = Data()
    shared, lone = data.file(b"shared"), symlink(b"target")
    root = tree(
        {b"a": shared, b"b": directory({b"c": shared, b"d": lone}), b"e": lone, b"f": data.file(b"alone"), b"z": shared}
    )
    assert shared.nlink == 3
    assert differences(root, data, tmp_path) == []


def test_file_sizes_around_blocks_and_pages(tmp_path: Path) -> None:
    data = Data(gap=b"\xee" * 3 * BLOCK)
    sizes = [border + delta for border in (512, 1024, 4096, 8192, 65536) for delta in (-1, 0, 1)] + [1, 1_000_003]
    root = tree({b"%d" % size: data.file(os.urandom(size)) for size in sizes})
    assert differences(root, data, tmp_path) == []


@pytest.mark.parametrize("xattrs", [(), ((b"trusted.x", b"1"),)])
def test_symlinks_of_every_length_wherever_they_fall(xattrs: tuple[tuple[bytes, bytes], ...], tmp_path: Path) -> None:
    lengths = [*range(1, 40), *range(400, 530, 3), 447, 448, 449, 511, 512, 513, 1024, 1025, 4094, 4095]
    root = tree({b"%04d" % length: symlink(b"t" * length, xattrs=xattrs) for length in lengths})
    assert differences(root, Data(), tmp_path) == []


@pytest.mark.parametrize("xattrs", [(), ((b"trusted.x", b"1"),)])
def test_directories_of_every_size_around_a_block(xattrs: tuple[tuple[bytes, bytes], ...], tmp_path: Path) -> None:
    full = {b"%03d" % count: _of_fifos(_names(count)) for count in range(90)}
    wide = {b"w%d" % width: _of_fifos(_names(9, width)) for width in (40, 200, 241, 242, 255)}
    long = {b"l%03d" % width: _of_fifos([b"n" * width, b"m" * 230]) for width in range(200, 256)}
    for one in (full | wide | long).values():
        one.xattrs = xattrs
    assert differences(tree(full | wide | long), Data(), tmp_path) == []


def _of_fifos(names: list[bytes]) -> MergedNode:
    return directory({name: node(stat.S_IFIFO) for name in names})


def _names(count: int, width: int = 3) -> list[bytes]:
    return [(b"%03d" % number).ljust(width, b"x") for number in range(count)]


def test_names_of_any_bytes_are_found(tmp_path: Path) -> None:
    names = [bytes([one]) for one in range(1, 256) if one not in b"/."]
    names += [b"...", b".a", b"..\xff", b"-", b"\xff" * 255, "ä".encode(), b" ", b"\n", b"a.b", b"a", b"a\x01"]
    assert differences(tree({b"d": _of_fifos(names)}), Data(), tmp_path) == []


def test_a_hundred_thousand_names_in_one_directory(tmp_path: Path) -> None:
    names = [b"entry-%06d" % (number * 7) for number in range(100_000)]
    image = build(tree({name: node(stat.S_IFREG) for name in names}), [])
    with mounted(image, [], tmp_path) as mount:
        assert sorted(os.listdir(os.fsencode(mount))) == names
        assert not os.path.lexists(mount / "entry-000001")
        assert all(os.path.lexists(os.path.join(os.fsencode(mount), name)) for name in names[::997])
    assert len(image) < 100_000 * 100


def test_directories_a_thousand_deep(tmp_path: Path) -> None:
    deepest = directory({b"end": node(stat.S_IFIFO)})
    for _ in range(1000):
        deepest = directory({b"d": deepest})
    with mounted(build(tree(deepest.children or {}), []), [], tmp_path) as mount:
        assert os.listdir(mount / ("d/" * 1000)) == ["end"]
        assert (mount / ("d/" * 600) / ("../" * 600)).samefile(mount)


def test_a_file_on_each_of_a_hundred_devices(tmp_path: Path) -> None:
    data = Data(devices=100)
    root = tree({b"%d" % number: data.file(b"of device %d" % number, number) for number in range(100)})
    assert differences(root, data, tmp_path) == []


@pytest.mark.parametrize("size", [(5 << 30) + 3, (3 << 39) + 1], ids=["5 GiB", "1.5 TiB, more than a chunk"])
def test_a_file_of_more_than_32_bits(size: int, tmp_path: Path) -> None:
    device, start = tmp_path / "device", 7 * BLOCK
    marks = [0, (1 << 32) - 2, 1 << 32, (1 << 40) - 4, size - 5]
    with device.open("wb") as file:
        file.truncate(start + blocks(size) * BLOCK)
        for mark in marks:
            os.pwrite(file.fileno(), b"%05d" % (mark % 99991), start + mark) if mark < size else None
    root = tree({b"large": node(stat.S_IFREG, size=size, offset=start)})
    with mounted(build(root, [DataDevice(device.stat().st_size)]), [device], tmp_path) as mount:
        with (mount / "large").open("rb") as file:
            assert os.fstat(file.fileno()).st_size == size
            seen = [os.pread(file.fileno(), 5, mark) for mark in marks]
        with device.open("rb") as file:
            assert seen == [os.pread(file.fileno(), 5, start + mark) if mark < size else b"" for mark in marks]


def test_devices_that_together_are_larger_than_the_address_space(tmp_path: Path) -> None:
    sizes, devices = [1 << 40, 3 << 39, 4096], [tmp_path / f"device-{number}" for number in range(3)]
    files: dict[bytes, MergedNode] = {}
    for number, (device, size) in enumerate(zip(devices, sizes, strict=True)):
        with device.open("wb") as file:
            file.truncate(size)
            os.pwrite(file.fileno(), b"of device %d" % number, size - BLOCK)
        files[b"%d" % number] = node(stat.S_IFREG, size=11, layer=number, offset=size - BLOCK)
    with mounted(build(tree(files), [DataDevice(size) for size in sizes]), devices, tmp_path) as mount:
        assert [(mount / str(number)).read_bytes() for number in range(3)] == [
            b"of device %d" % number for number in range(3)
        ]


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (1, []),
        (10_000, []),
        (5 << 30, []),
        (8192, [(0, b"a" * 4096)]),
        (8192, [(4096, b"b" * 4096)]),
        (8000, [(4096, b"c" * (8000 - 4096))]),
        (1 << 20, [(512, b"d" * 512), (2048, b"e" * 1536), (65536, b"f" * 4096)]),
        (40960, [(0, b"g" * 4096), (4096, b"h" * 4096), (32768, b"i" * 8192)]),
        (700, [(0, b"j" * 512), (512, b"k" * 188)]),
    ],
)
def test_sparse_files(size: int, pieces: list[tuple[int, bytes]], tmp_path: Path) -> None:
    data = Data()
    root = tree({b"sparse": data.sparse(size, pieces)})
    with (
        mounted(build(root, data.sizes()), data.write(tmp_path), tmp_path) as mount,
        (mount / "sparse").open("rb") as file,
    ):
        assert os.fstat(file.fileno()).st_size == size
        content = bytearray(min(size, 1 << 20))
        for position, piece in pieces:
            content[position : position + len(piece)] = piece
        assert file.read(len(content)) == content
        file.seek(max(0, size - 1000))
        assert file.read() == (content if size == len(content) else bytes(1000))[-1000:]


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, b"a" * 100)],
        [(4096, b"b" * 4200)],
        [(0, b"c" * 513), (4096, b"d" * 512)],
        [(1, b"e"), (3, b"f"), (511, b"gg"), (1023, b"h"), (1024, b"i" * 600), (9999, b"j")],
        [(700, b"k" * 100), (1024, b"l" * 512), (2048, b"m" * 1000)],
    ],
)
def test_sparse_files_off_the_blocks_are_copied(pieces: list[tuple[int, bytes]], tmp_path: Path) -> None:
    data = Data()
    assert differences(tree({b"sparse": data.sparse(10_000, pieces), b"z": data.file(b"z")}), data, tmp_path) == []


def test_a_program_runs_from_it(tmp_path: Path) -> None:
    data = Data()
    program = data.file(Path(sys.executable).resolve().read_bytes())
    program.mode = stat.S_IFREG | 0o755
    with mounted(build(tree({b"python": program}), data.sizes()), data.write(tmp_path), tmp_path) as mount:
        done = subprocess.run([mount / "python", "-S", "-c", "print(6 * 7)"], capture_output=True, check=True)
    assert done.stdout == b"42\n"


def test_a_file_at_the_end_of_a_cut_device_is_copied(tmp_path: Path) -> None:
    data = Data(gap=b"")
    last = data.file(b"z" * 700)
    del data.devices[0][700:]
    assert differences(tree({b"last": last}), data, tmp_path) == []


def test_xattrs_at_their_limits(tmp_path: Path) -> None:
    many = tuple((b"user.%03d" % number, b"v" * number) for number in range(255))
    children = {
        b"large": node(stat.S_IFREG, xattrs=((b"user.large", os.urandom(65535)),)),
        b"many": node(stat.S_IFREG, xattrs=many),
        b"many in a directory": directory({b"f": node(stat.S_IFIFO)}, xattrs=many),
        b"many on a link": symlink(b"t", xattrs=tuple((b"trusted.%d" % number, b"") for number in range(200))),
        b"many with content": node(stat.S_IFREG, xattrs=many[:254]),
        b"name": node(stat.S_IFREG, xattrs=((b"user." + b"n" * 250, b"v"),)),
    }
    assert differences(tree(children), Data(), tmp_path) == []


def test_the_place_of_data_behind_xattrs_is_even(tmp_path: Path) -> None:
    data = Data()
    labels = [tuple((b"user.%d" % number, b"v") for number in range(count)) for count in range(1, 5)]
    root = tree({b"%d" % len(label): data.file(b"data %d" % len(label), xattrs=label) for label in labels})
    assert differences(root, data, tmp_path) == []


def test_a_label_on_every_inode_is_stored_once(tmp_path: Path) -> None:
    label = ((b"security.selinux", b"system_u:object_r:container_file_t:s0:c1,c2"),)
    plain = build(tree({b"%d" % number: node(stat.S_IFREG) for number in range(1000)}), [])
    root = tree({b"%d" % number: node(stat.S_IFREG, xattrs=label) for number in range(1000)})
    assert len(build(root, [])) - len(plain) <= 1000 * 32 + 2 * BLOCK
    assert differences(root, Data(), tmp_path) == []


def test_an_image_of_odd_layers(tmp_path: Path) -> None:
    layers = oddities_image().layers
    root = merge([walk(layer.tar) for layer in layers]).root
    data = Data(len(layers))
    data.devices = [bytearray(layer.tar) for layer in layers]
    assert differences(root, data, tmp_path) == []


def test_inode_numbers_are_never_zero_and_the_same_again(tmp_path: Path) -> None:
    root = tree({b"a": directory({b"b": node(stat.S_IFIFO)})})
    assert _numbers(root, tmp_path) == _numbers(root, tmp_path)
    assert all(_numbers(root, tmp_path))


def _numbers(root: MergedNode, scratch: Path) -> list[int]:
    with mounted(build(root, []), [], scratch) as mount:
        return [os.lstat(path).st_ino for path in (mount, mount / "a", mount / "a" / "b")]
