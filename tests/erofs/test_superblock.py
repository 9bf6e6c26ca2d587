"""The checksums of an image detect torn and foreign images. The same tree results in the same bytes."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

import pytest

from imgfs.erofs.format import BLOCK, DEVICE, DIRENT, INDEX, INODE, SUPERBLOCK, UUID_AT, XATTR, XATTR_BODY
from imgfs.erofs.inode import DataDevice
from imgfs.erofs.superblock import is_whole, places
from imgfs.erofs.writer import build
from imgfs.errors import ImgfsError
from tests.erofs.scene import Data, directory, mounted, node, symlink, tree

UUID = slice(1024 + UUID_AT, 1024 + UUID_AT + 16)


def image(word: bytes = b"data", devices: int = 1) -> bytearray:
    data = Data(devices)
    children = {
        b"f": data.file(word),
        b"d": directory({b"%03d" % number: symlink(word) for number in range(100)}),
        b"x": node(stat.S_IFREG, xattrs=((b"user.x", word),)),
    }
    return build(tree(children), data.sizes())


def test_structures_have_the_sizes_of_the_kernel() -> None:
    sizes = [one.size for one in (SUPERBLOCK, DEVICE, INODE, INDEX, DIRENT, XATTR_BODY, XATTR)]
    assert sizes == [128, 128, 64, 8, 12, 12, 4]


def test_the_same_tree_makes_the_same_bytes_and_another_tree_another_uuid() -> None:
    assert image() == image()
    assert image()[UUID] != image(b"dada")[UUID]


def test_the_order_of_children_does_not_count() -> None:
    names = [b"b", b"a", b"c"]
    one, two = ({name: node(stat.S_IFREG, number=7) for name in order} for order in (names, names[::-1]))
    assert build(directory(one), []) == build(directory(two), [])


def test_devices_lie_one_after_the_other_as_far_as_32_bits_reach() -> None:
    sizes = [1, 0, 1025, 1 << 40, 1 << 40, 512, 1 << 40]
    first = 1 << 26
    expected = [first, first + 1, first + 1, first + 4, 0, first + 4 + (1 << 31), 0]
    assert places([DataDevice(size) for size in sizes]) == expected


@pytest.mark.parametrize("devices", [0, 1, 3, 4, 50])
def test_a_whole_image_is_whole(devices: int) -> None:
    made = build(tree({}), [DataDevice(512 * number) for number in range(devices)])
    assert len(made) % BLOCK == 0
    assert is_whole(made)
    assert is_whole(bytes(made))


def test_a_file_can_be_judged_as_a_map(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert is_whole(content)


def test_any_changed_byte_is_seen() -> None:
    whole = image()
    for at in [*range(0, 1024, 101), *range(1032, 1200, 3), *range(1200, len(whole), 97), len(whole) - 1]:
        torn = bytearray(whole)
        torn[at] ^= 0x10
        assert not is_whole(torn), at


@pytest.mark.parametrize("block", range(0, 20, 3))
def test_a_block_that_did_not_reach_the_disk_is_seen(block: int) -> None:
    torn = image()
    before = torn[block * BLOCK : (block + 1) * BLOCK]
    torn[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
    assert is_whole(torn) is not any(before)


def test_a_cut_or_grown_image_is_seen() -> None:
    whole = image()
    for size in (0, 1, 100, 1023, 1024, 1100, 1151, 1152, 1536, len(whole) - BLOCK, len(whole) - 1):
        assert not is_whole(whole[:size]), size
    assert not is_whole(whole + bytes(1))
    assert not is_whole(whole + bytes(BLOCK))


def test_the_kernel_checks_the_superblock_by_itself(tmp_path: Path) -> None:
    torn = build(tree({}), [])
    torn[1024 + 64] ^= 1
    with pytest.raises(ImgfsError), mounted(torn, [], tmp_path):
        pass


def test_a_usual_tree_takes_at_most_150_bytes_an_entry() -> None:
    data = Data()
    packages = {
        b"package-%02d" % number: directory({b"module_%03d.py" % one: data.file(b"x = 1\n") for one in range(50)})
        for number in range(40)
    }
    assert len(build(tree(packages), data.sizes())) <= 150 * 40 * 51
