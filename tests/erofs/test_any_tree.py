"""Generated small trees: the kernel shows the same tree from their images."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.erofs.superblock import is_whole
from imgfs.erofs.writer import build
from imgfs.layers.tree import MergedNode
from tests.erofs.scene import Data, differences, directory, node, symlink, tree

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
SIZES = st.sampled_from([0, 1, 511, 512, 513, 1024, 4095, 4096, 4097, 20_000])
XATTRS = st.dictionaries(
    st.sampled_from([b"trusted.a", b"trusted.bc", b"security.d", b"trusted." + b"e" * 200]), st.binary(max_size=700)
).map(lambda found: tuple(found.items()))
ATTRIBUTES = st.fixed_dictionaries(
    {
        "uid": st.integers(0, 0xFFFFFFFE),
        "gid": st.integers(0, 0xFFFFFFFE),
        "mtime": st.integers(-(1 << 62), 1 << 62),
        "xattrs": XATTRS,
    }
)
SPECIAL = st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
PIECES = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)), max_size=5)
"""Of a sparse file: the length of each hole and of the data behind it."""


@st.composite
def trees(draw: st.DrawFn) -> tuple[MergedNode, Data]:
    """A root and its data; some files have several names."""
    data = Data(devices=draw(st.integers(1, 3)))
    files = [draw(_leaves(data)) for _ in range(draw(st.integers(0, 6)))]
    children = _below(draw, files, depth=3)
    return tree(children, **draw(ATTRIBUTES)), data


def _below(draw: st.DrawFn, files: list[MergedNode], depth: int) -> dict[bytes, MergedNode]:
    children: dict[bytes, MergedNode] = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        if files and draw(st.booleans()):
            children[name] = draw(st.sampled_from(files))
        elif depth:
            children[name] = directory(_below(draw, files, depth - 1), **draw(ATTRIBUTES))
    return children


@st.composite
def _leaves(draw: st.DrawFn, data: Data) -> MergedNode:
    facts: dict[str, Any] = draw(ATTRIBUTES)
    kind = draw(st.sampled_from(["file", "sparse", "symlink", "special"]))
    if kind == "file":
        size = draw(SIZES)
        return data.file(
            draw(st.binary(min_size=1, max_size=20)).ljust(size, b"x")[:size], _device(draw, data), **facts
        )
    if kind == "sparse":
        return _sparse(data, draw(PIECES), draw(st.integers(0, 3000)))
    if kind == "symlink":
        target = draw(st.binary(min_size=1, max_size=40).filter(lambda found: b"\0" not in found))
        return symlink((target * 200)[: draw(st.integers(1, 4095))], **facts)
    return node(draw(SPECIAL) | 0o640, rdev=(draw(st.integers(1, 4095)), draw(st.integers(0, 0xFFFFF))), **facts)


def _device(draw: st.DrawFn, data: Data) -> int:
    return draw(st.integers(0, len(data.devices) - 1))


def _sparse(data: Data, holes: list[tuple[int, int]], rest: int) -> MergedNode:
    pieces: list[tuple[int, bytes]] = []
    position = 0
    for hole, length in holes:
        pieces.append((position + hole, bytes([1 + len(pieces)]) * length))
        position += hole + length
    return data.sparse(position + rest, pieces)


@settings(max_examples=80)
@given(trees())
def test_the_kernel_shows_the_tree(made: tuple[MergedNode, Data]) -> None:
    root, data = made
    with tempfile.TemporaryDirectory() as scratch:
        assert differences(root, data, Path(scratch)) == []


@settings(max_examples=50)
@given(trees())
def test_images_are_whole_and_always_the_same(made: tuple[MergedNode, Data]) -> None:
    root, data = made
    image = build(root, data.sizes(), data.read_at)
    assert is_whole(image)
    assert image == build(root, data.sizes(), data.read_at)
