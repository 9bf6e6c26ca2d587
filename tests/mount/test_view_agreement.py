"""The kernel's view, the FUSE view, and an overlay on either show the same tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from imgfs.testing.images import (
    DeviceFile,
    Dir,
    Entry,
    File,
    Hardlink,
    Opaque,
    SparseFile,
    Symlink,
    Whiteout,
    busybox_image,
    image,
    layer,
    oddities_image,
)
from imgfs.testing.registry import FakeRegistry
from tests.mount.kernel_views import FUSE, chain_of, forget_layers, prepare, shown_at
from tests.mount.scene import CONFIG, Scene
from tests.support.mounted import Mounted
from tests.support.trees import Node, compare_trees, snapshot_tree

MEBIBYTE = 1 << 20
MANY = tuple((at * 8192, b"%04d" % at * 128) for at in range(200))
EDGES: list[Entry] = [
    Dir("", mode=0o750, uid=7, gid=8, mtime_ns=1_500_000_000_999_999_999, xattrs={"user.root": b"yes"}),
    Dir("big"),
    *(File(f"big/{number:04d}-{'x' * 40}", b"%d" % number) for number in range(600)),
    File("exactly-a-page", os.urandom(4096)),
    File("a-page-and-a-byte", os.urandom(4097)),
    File("exactly-a-block", os.urandom(512)),
    File("big-file", os.urandom(3 * MEBIBYTE + 17)),
    SparseFile("sparse/many", 2 * MEBIBYTE, MANY, "gnu"),
    SparseFile("sparse/tail", 3 * MEBIBYTE + 7, ((0, b"head" * 128), (3 * MEBIBYTE, b"7 bytes")), "gnu"),
    Symlink("long-link", "t" * 4000),
    Symlink("block-link", "t" * 512),
    File("xattrs/large", b"x", xattrs={"user.large": b"v" * 3000, "user.small": b""}),
    File("xattrs/many", b"x", xattrs={f"user.number-{number}": b"%d" % number for number in range(60)}),
    File("xattrs/shared", b"y", xattrs={"user.number-1": b"1"}),
    File("time/before-1970", mtime_ns=-1_500_000_000),
    File("time/after-2038", mtime_ns=5_000_000_000_000_000_001),
    Hardlink("link-of-many", "xattrs/many"),
    DeviceFile("devices/large-numbers", "block", 259, 70_000),
    Dir(".hidden", mode=0),
]
SAME = layer([Dir("same"), File("same/file", b"the same layer twice\n"), File("same/upper", b"1\n")])
ODD_WHITEOUTS = (".wh.", ".wh..", ".wh...", ".wh..wh.plnk", ".wh..wh.aufs", ".wh..wh.", ".wh..wh..wh..opq")
"""Names that look like whiteouts but hide no file. The views do not show them."""
KEPT = [
    Dir("kept"),
    File("kept/file", b"kept\n"),
    File("top", b"top\n"),
    Dir("gone"),
    File("gone/file", b""),
]
ODD = [
    *(File(name, b"odd\n") for name in ODD_WHITEOUTS),
    *(File(f"kept/{name}", b"odd\n") for name in ODD_WHITEOUTS),
    *(File(f"new/{name}", b"odd\n") for name in ODD_WHITEOUTS),
    Dir("new"),
    Dir("kept/.wh..wh.orph"),
    File("kept/.wh..wh.orph/file", b"odd\n"),
    Whiteout("gone/file"),
]
IMAGES = {
    "oddities": oddities_image(),
    "edges": image([layer(EDGES)]),
    "busybox": busybox_image("zstd"),
    "nothing": image([]),
    "empty-layer": image([layer([])]),
    "same-layer-twice": image([SAME, layer([Dir("same"), Whiteout("same/file")], "zstd"), SAME]),
    "odd-whiteouts": image([layer(KEPT), layer(ODD), layer([File("last", b"last\n")], "zstd")]),
    "opaque-root": image([layer(EDGES), layer([Opaque(""), File("only", b"this\n")], "none")]),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One registry and two mounts of it: one with kernel views, one with FUSE views."""

    kernel: Scene
    fuse: Scene


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        FakeRegistry() as registry,
        Mounted(tmp_path_factory.mktemp("kernel"), CONFIG) as kernel,
        Mounted(tmp_path_factory.mktemp("fuse"), FUSE) as fuse,
    ):
        kernel.start()
        fuse.start()
        for name, made in IMAGES.items():
            made.add_to(registry, name, "1")
        yield Pair(Scene(registry, kernel), Scene(registry, fuse))


def tree(scene: Scene, name: str) -> dict[bytes, Node]:
    return snapshot_tree(os.path.realpath(f"{scene.name(name)}/rootfs/", strict=True))


@pytest.mark.parametrize("name", IMAGES)
def test_the_kernels_view_equals_the_fuse_view(pair: Pair, name: str) -> None:
    expected, actual = tree(pair.fuse, name), tree(pair.kernel, name)
    assert compare_trees(expected, actual) == []
    assert shown_at(pair.kernel.mount, chain_of(pair.kernel, IMAGES[name])) == ["erofs"]
    assert shown_at(pair.fuse.mount, chain_of(pair.fuse, IMAGES[name])) == ["fuse.imgfs"]


def test_odd_whiteouts_hide_nothing_and_are_not_shown(pair: Pair) -> None:
    expected = {b"", b"kept", b"kept/file", b"top", b"gone", b"new", b"last"}
    for scene in (pair.fuse, pair.kernel):
        assert tree(scene, "odd-whiteouts").keys() == expected
        top = os.path.realpath(f"{scene.name('odd-whiteouts')}/rootfs/")
        assert not [name for name in ODD_WHITEOUTS if os.path.lexists(f"{top}/kept/{name}")]


@pytest.mark.parametrize("name", IMAGES)
def test_an_unused_active_snapshot_equals_its_parent(pair: Pair, name: str) -> None:
    expected = tree(pair.fuse, name)
    for scene in (pair.kernel, pair.fuse):
        os.listdir(f"{scene.name(name)}/rootfs/")
        directory = prepare(scene, name, chain_of(scene, IMAGES[name]).name)
        assert compare_trees(expected, snapshot_tree(directory / "rootfs")) == []
        assert shown_at(scene.mount, directory) == ["overlay"]


def test_views_agree_while_layers_are_missing_and_after_a_refetch(pair: Pair) -> None:
    expected = {name: tree(pair.fuse, name) for name in IMAGES}
    trees = {name: tree(pair.kernel, name) for name in IMAGES}
    numbers = numbers_of(pair.kernel)
    pair.kernel.mount.stop()
    for made in IMAGES.values():
        forget_layers(pair.kernel.mount, made)
    pair.kernel.mount.start()
    assert numbers_of(pair.kernel) == numbers
    assert {name: tree(pair.kernel, name) for name in IMAGES} == trees == expected
    pair.kernel.mount.stop()
    pair.kernel.mount.start()
    with pair.kernel.silence():
        assert {name: tree(pair.kernel, name) for name in IMAGES} == expected
        assert numbers_of(pair.kernel) == numbers


def numbers_of(scene: Scene) -> dict[str, int]:
    """Return the inode number of every path, without reading a file."""
    found: dict[str, int] = {}
    for name in IMAGES:
        top = os.path.realpath(f"{scene.name(name)}/rootfs/", strict=True)
        for directory, directories, files in os.walk(os.fsencode(top)):
            for one in (b".", *directories, *files):
                path = os.path.join(directory, one)
                found[f"{name} {os.path.relpath(path, os.fsencode(top))!r}"] = os.lstat(path).st_ino
    return found


def test_fuse_reports_the_blocks_of_sparse_files(pair: Pair) -> None:
    """EROFS has no holes in a chunked file of one chunk, so its st_blocks differs from FUSE's."""
    path = f"{pair.fuse.name('oddities')}/rootfs/sparse/only-hole"
    assert (os.stat(path).st_size, os.stat(path).st_blocks) == (MEBIBYTE, 0)
    path = f"{pair.fuse.name('edges')}/rootfs/sparse/tail"
    assert 2 <= os.stat(path).st_blocks <= 8
