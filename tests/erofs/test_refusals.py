"""Trees that the writer refuses: the error has the right class and names the path."""

from __future__ import annotations

import stat

import pytest

from imgfs.erofs.chunks import INDEXES_MAX
from imgfs.erofs.format import BLOCK, HOLE
from imgfs.erofs.inode import DataDevice
from imgfs.erofs.writer import COPIED_MAX, build
from imgfs.errors import ImgfsError, Invalid, Malformed, TooLarge, Unsupported
from imgfs.layers.entry import Extent
from imgfs.layers.tree import MergedNode
from tests.erofs.scene import directory, node, symlink, tree

HUGE = (HOLE - 1) * BLOCK
REGULAR = stat.S_IFREG | 0o644


def file(**facts: object) -> MergedNode:
    return node(REGULAR, **facts)


def sparse(size: int, *extents: tuple[int, int, int]) -> MergedNode:
    return file(size=size, extents=tuple(Extent(*extent) for extent in extents))


REFUSED: dict[str, tuple[MergedNode, type[ImgfsError], str]] = {
    "data off the blocks": (file(size=1, offset=511), Unsupported, "byte 511"),
    "a region at an odd offset": (sparse(4096, (0, 512, 512), (1024, 1023, 512)), Unsupported, "byte 1023"),
    "a hole that begins in a block": (sparse(4096, (0, 512, 100)), Unsupported, "hole"),
    "a hole that ends in a block": (sparse(4096, (100, 512, 412)), Unsupported, "hole"),
    "too many chunks": (sparse((INDEXES_MAX + 1) * BLOCK, (0, 0, 512)), Unsupported, str(INDEXES_MAX)),
    "data behind the device": (file(size=4097, offset=HUGE - 4096), Malformed, "layer 0"),
    "a region behind the device": (sparse(HUGE, (0, HUGE - 512, 1024)), Malformed, "layer 0"),
    "data before the device": (file(size=1, offset=-512), Malformed, "layer 0"),
    "data in the cut end": (file(size=1, layer=1), Unsupported, "cut"),
    "a layer that is not there": (file(size=1, layer=2), Malformed, "layer 2"),
    "no layer": (file(size=1, layer=-1), Malformed, "layer -1"),
    "an xattr of no namespace": (file(xattrs=((b"com.apple.x", b""),)), Unsupported, "com.apple.x"),
    "an xattr without a name": (file(xattrs=((b"user.", b""),)), Unsupported, "user."),
    "another system xattr": (file(xattrs=((b"system.posix_acl", b""),)), Unsupported, "system.posix_acl"),
    "a large xattr": (file(xattrs=((b"user.x", bytes(65536)),)), Unsupported, "65536"),
    "many xattrs": (file(xattrs=tuple((b"user.%d" % one, b"") for one in range(256))), Unsupported, "256"),
    "a long target": (symlink(b"t" * 4096), TooLarge, "4096"),
    "a zero byte in a target": (symlink(b"a\0b"), Malformed, "zero byte"),
    "a large major number": (node(stat.S_IFCHR, rdev=(4096, 0)), Unsupported, "4096:0"),
    "a large minor number": (node(stat.S_IFBLK, rdev=(0, 1 << 20)), Unsupported, "0:1048576"),
    "a long name": (directory({b"n" * 256: file()}), TooLarge, "256"),
    "an empty name": (directory({b"": file()}), Malformed, "empty"),
    "a slash in a name": (directory({b"a/b": file()}), Malformed, "slash"),
    "a zero byte in a name": (directory({b"a\0": file()}), Malformed, "zero byte"),
    "dot as a name": (directory({b".": file()}), Malformed, "`.`"),
    "dot dot as a name": (directory({b"..": file()}), Malformed, "`..`"),
    "no type": (node(0o644), Malformed, "644"),
    "a directory without children": (node(stat.S_IFDIR), Malformed, "40000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_path(name: str) -> None:
    bad, kind, word = REFUSED[name]
    root = tree({b"above": directory({b"bad": bad})})
    with pytest.raises(kind) as caught:
        build(root, [DataDevice(HUGE), DataDevice(511)])
    assert caught.value.message.startswith("b'/above/bad': ")
    assert word in caught.value.message


def test_a_refused_root_has_a_path_too() -> None:
    with pytest.raises(Unsupported, match="b'/': "):
        build(tree({}, xattrs=((b"odd", b""),)), [])


def test_data_beyond_what_block_numbers_reach_is_too_large() -> None:
    with pytest.raises(TooLarge, match="/f"):
        build(tree({b"f": file(size=2, offset=HUGE)}), [DataDevice(HUGE + 512)])


@pytest.mark.parametrize(
    ("devices", "kind"),
    [
        ([DataDevice(HUGE + 1, b"large")], TooLarge),
        ([DataDevice(0)] * 65536, TooLarge),
        ([DataDevice(0, b"t" * 65)], Invalid),
    ],
)
def test_devices_that_no_table_holds(devices: list[DataDevice], kind: type[ImgfsError]) -> None:
    with pytest.raises(kind):
        build(tree({}), devices)


def test_the_last_device_that_block_numbers_reach_is_taken() -> None:
    assert build(tree({b"f": file(size=HUGE)}), [DataDevice(HUGE)])


def test_chunks_of_all_files_together_are_bounded() -> None:
    one = (INDEXES_MAX - 8) * BLOCK
    root = tree({b"%d" % number: sparse(one, (0, 0, 512)) for number in range(3)})
    with pytest.raises(Unsupported, match="/2"):
        build(root, [DataDevice(HUGE)])


def test_copied_data_is_bounded() -> None:
    half = COPIED_MAX // 2
    root = tree({b"%d" % number: sparse(2 * half, (1, 0, half)) for number in range(3)})
    with pytest.raises(Unsupported, match="/2"):
        build(root, [DataDevice(half)], lambda _layer, _offset, length: bytes(length))


def test_what_reading_raises_comes_through() -> None:
    def read(layer: int, offset: int, length: int) -> bytes:
        raise OSError(5, f"{layer} {offset} {length}")

    with pytest.raises(OSError, match="0 512 100"):
        build(tree({b"f": sparse(4096, (0, 512, 100))}), [DataDevice(4096)], read)
