"""The merged tree: every rule of applying changesets as a table, and a real unpacking as the oracle."""

from __future__ import annotations

import gc
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import Malformed, TooLarge
from imgfs.layers import tree as room
from imgfs.layers.entry import Entry, EntryKind, Extent
from imgfs.layers.tree import IMPLICIT_MODE, MergedNode, MergedTree, changes, merge, walk
from tests.layers.unpacking import Refused, Unpacking


def f(path: str, **facts: int) -> Entry:
    return Entry(path.encode(), EntryKind.REGULAR, 0o644, **facts)


def d(path: str, mode: int = 0o755) -> Entry:
    return Entry(path.encode(), EntryKind.DIRECTORY, mode)


def s(path: str, target: str) -> Entry:
    return Entry(path.encode(), EntryKind.SYMLINK, 0o777, link=target.encode())


def h(path: str, target: str) -> Entry:
    return Entry(path.encode(), EntryKind.HARDLINK, link=target.encode())


def w(path: str) -> Entry:
    return Entry(path.encode(), EntryKind.WHITEOUT)


def o(path: str) -> Entry:
    return Entry(path.encode(), EntryKind.OPAQUE)


def shape(tree: MergedTree) -> str:
    """Return all paths: directories with a slash, links with their targets, files with their layers."""
    return " ".join(sorted(_shape(path.decode(), node) for path, node in walk(tree.root) if path))


def _shape(path: str, node: MergedNode) -> str:
    if node.is_directory:
        return f"{path}/"
    return f"{path}->{node.link.decode()}" if node.is_symlink else f"{path}={node.layer}"


RULES = {
    "nothing": ([], ""),
    "one layer": ([[d("a"), f("a/b")]], "a/ a/b=0"),
    "layers add up": ([[f("a")], [f("b")]], "a=0 b=1"),
    "an upper file replaces": ([[f("a")], [f("a")]], "a=1"),
    "parents may miss": ([[f("a/b/c")]], "a/ a/b/ a/b/c=0"),
    "the parent may come after": ([[f("a/b"), d("a")]], "a/ a/b=0"),
    "whiteout of a file": ([[f("a"), f("b")], [w("a")]], "b=0"),
    "whiteout of a directory": ([[f("a/b"), f("c")], [w("a")]], "c=0"),
    "whiteout in a directory": ([[f("a/b"), f("a/c")], [w("a/b")]], "a/ a/c=0"),
    "whiteout of nothing": ([[f("a")], [w("b"), w("a/b"), w("c/d")]], "a=0"),
    "whiteout in the base layer": ([[w("a"), f("a")]], "a=0"),
    "whiteout before its own layer's file": ([[f("a")], [w("a"), f("a")]], "a=1"),
    "whiteout behind its own layer's file": ([[f("a")], [f("a"), w("a")]], "a=1"),
    "whiteout of a directory that is made again": ([[f("a/old")], [f("a/new"), w("a")]], "a/ a/new=1"),
    "whiteout twice": ([[f("a")], [w("a"), w("a")]], ""),
    "whited out and back": ([[f("a")], [w("a")], [f("a")]], "a=2"),
    "whiteout through a link": ([[d("d"), f("d/x"), s("l", "d")], [w("l/x")]], "d/ l->d"),
    "whiteout of a link and not of its target": ([[f("d/x"), s("l", "d")], [w("l")]], "d/ d/x=0"),
    "whiteout through a loop": ([[s("l", "l"), f("a")], [w("l/a")]], "a=0 l->l"),
    "opaque": ([[f("a/b"), f("a/c/d"), f("e")], [o("a")]], "a/ e=0"),
    "opaque before its layer's files": ([[f("a/b")], [o("a"), f("a/n")]], "a/ a/n=1"),
    "opaque behind its layer's files": ([[f("a/b")], [d("a"), f("a/n"), o("a")]], "a/ a/n=1"),
    "opaque root": ([[f("a"), f("b/c")], [o(""), f("n")]], "n=1"),
    "opaque nothing": ([[f("a")], [o("b"), o("a")]], "a=0"),
    "opaque and then an upper layer": ([[f("a/b")], [o("a")], [f("a/c")]], "a/ a/c=2"),
    "opaque through a link": ([[f("d/x"), s("l", "d")], [o("l")]], "d/ l->d"),
    "an opaque directory in a link's place": (
        [[f("d/x"), s("l", "d")], [d("l"), o("l"), f("l/n")]],
        "d/ d/x=0 l/ l/n=1",
    ),
    "the same, marks first": ([[f("d/x"), s("l", "d")], [o("l"), w("l/x"), d("l")]], "d/ d/x=0 l/"),
    "a whiteout below a directory in a link's place": (
        [[f("d/e/x"), s("l", "d")], [d("l"), d("l/e"), w("l/e/x")]],
        "d/ d/e/ d/e/x=0 l/ l/e/",
    ),
    "in a link's place, but one layer up": ([[f("d/x"), s("l", "d")], [d("l"), f("l/x")], [w("l/x")]], "d/ d/x=0 l/"),
    "a file over a directory": ([[f("a/b")], [f("a")]], "a=1"),
    "a directory over a file": ([[f("a")], [d("a"), f("a/b")]], "a/ a/b=1"),
    "a directory over a directory": ([[f("a/b")], [d("a")]], "a/ a/b=0"),
    "a link over a directory": ([[f("a/b")], [s("a", "x")]], "a->x"),
    "a directory over a link": ([[f("d/x"), s("a", "d")], [d("a")]], "a/ d/ d/x=0"),
    "a file over a link": ([[f("d"), s("a", "d")], [f("a")]], "a=1 d=0"),
    "within a layer too": ([[f("a"), d("a"), f("a/b"), s("a", "z")]], "a->z"),
    "a link as parent": ([[d("d"), s("l", "d"), f("l/x")]], "d/ d/x=0 l->d"),
    "a link as parent across layers": ([[d("d"), s("l", "d")], [f("l/x")]], "d/ d/x=1 l->d"),
    "links over links": ([[d("d"), s("m", "d"), s("l", "m")], [f("l/x")]], "d/ d/x=1 l->m m->d"),
    "an absolute link stays inside": ([[s("a/l", "/b")], [f("a/l/x")]], "a/ a/l->/b b/ b/x=1"),
    "a link upwards stays inside": ([[s("l", "../../../b")], [f("l/x")]], "b/ b/x=1 l->../../../b"),
    "a link to where it lies": ([[s("a/l", ".")], [f("a/l/x")]], "a/ a/l->. a/x=1"),
    "dots are of the target's place": (
        [[f("d/e/y"), s("l", "d/e")], [s("m", "l/../z"), f("m/x")]],
        "d/ d/e/ d/e/y=0 d/z/ d/z/x=1 l->d/e m->l/../z",
    ),
    "a dangling link as parent": ([[s("l", "far/away")], [f("l/x")]], "far/ far/away/ far/away/x=1 l->far/away"),
    "slashes in targets": ([[d("d"), s("l", "//d///./")], [f("l/x")]], "d/ d/x=1 l->//d///./"),
    "a parent that was a link and is none any more": (
        [[d("d"), s("l", "d"), f("l/x"), d("l"), f("l/y")]],
        "d/ d/x=0 l/ l/y=0",
    ),
    "a parent that is replaced and made again": ([[f("a/x"), f("a"), d("a"), f("a/y")]], "a/ a/y=0"),
    "a link keeps its target's target": ([[s("l", "a\nb")]], "l->a\nb"),
    "a hard link": ([[f("a"), h("b", "a")]], "a=0 b=0"),
    "a hard link to a lower file": ([[f("a")], [h("b", "a")]], "a=0 b=0"),
    "a hard link over a directory": ([[f("a"), f("b/c")], [h("b", "a")]], "a=0 b=0"),
    "a hard link to what it replaces": ([[f("b/c")], [h("b", "b/c")]], "b=0"),
    "a hard link to itself": ([[f("a")], [h("a", "a")]], "a=0"),
    "a hard link to a link": ([[s("a", "x"), h("b", "a")]], "a->x b->x"),
    "a hard link through a link": ([[f("d/a"), s("l", "d")], [h("l/b", "l/a")]], "d/ d/a=0 d/b=0 l->d"),
    "a hard link outlives its target": ([[f("a"), h("b", "a")], [w("a")]], "b=0"),
    "the target of a hard link is replaced": ([[f("a"), h("b", "a")], [f("a")]], "a=1 b=0"),
    "the last duplicate wins": ([[f("a", size=1), f("a", size=2)]], "a=0"),
}


@pytest.mark.parametrize(("layers", "expected"), RULES.values(), ids=RULES)
def test_layers_apply_one_over_another(layers: list[list[Entry]], expected: str) -> None:
    assert shape(merge(layers)) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [one for one in RULES.values() if any(layer for layer in one[0])],
    ids=[name for name, one in RULES.items() if any(layer for layer in one[0])],
)
def test_an_unpacking_says_the_same(tmp_path: Path, layers: list[list[Entry]], expected: str) -> None:
    assert unpacked(tmp_path, layers) == listing(merge(layers))


@pytest.mark.parametrize(
    "layers",
    [
        [[f("a"), f("a/b")]],
        [[f("a")], [f("a/b")]],
        [[f("a")], [s("l", "a"), f("l/b")]],
        [[s("l", "l"), f("l/b")]],
        [[s("a", "b"), s("b", "a")], [d("a/c")]],
        [[h("b", "a")]],
        [[h("b", "a"), f("a")]],
        [[d("a"), h("b", "a")]],
        [[f("a")], [h("b", "a/c")]],
        [[s("l", "l")], [h("b", "l/x")]],
        [[f("a"), s("l", "a")], [h("l/b", "a")]],
    ],
)
def test_what_cannot_be_unpacked_is_malformed(tmp_path: Path, layers: list[list[Entry]]) -> None:
    with pytest.raises(Malformed, match="layer"):
        merge(layers)
    assert unpacked(tmp_path, layers) is None


def chain(links: int) -> list[Entry]:
    return [d("end"), *(s(f"l{n}", f"l{n - 1}" if n else "end") for n in range(links)), f(f"l{links - 1}/x")]


def test_as_many_links_as_the_kernel_follows_and_one_more() -> None:
    assert "end/x=0" in shape(merge([chain(40)]))
    with pytest.raises(Malformed, match="loop of links"):
        merge([chain(41)])


def test_entries_at_the_limit_and_one_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "NODES_MAX", 3)
    merge([[f("a/b")], [f("c")]])
    with pytest.raises(TooLarge, match="more than 3 entries"):
        merge([[f("a/b")], [f("c"), f("d")]])


def test_everything_an_entry_says_is_in_its_node() -> None:
    said = Entry(b"a", EntryKind.CHARACTER, 0o4755, 7, 8, -9, 0, 0, b"", 5, 1, ((b"user.a", b"b"),))
    sparse = f("s", size=10, offset=512, mtime=3)
    sparse = Entry(*[getattr(sparse, name) for name in sparse.__struct_fields__[:-1]], (Extent(0, 512, 4),))
    link = s("l", "targét")
    a, b, c = (merge([[d("")], [said, sparse, link]]).nodes)[1:]
    assert (a.mode, a.uid, a.gid, a.mtime, a.rdev) == (stat.S_IFCHR | 0o4755, 7, 8, -9, (5, 1))
    assert (a.xattrs, a.layer) == (((b"user.a", b"b"),), 1)
    assert (b.size, b.offset, b.mtime, b.extents) == (10, 512, 3, (Extent(0, 512, 4),))
    assert (c.mode, c.link, c.size) == (stat.S_IFLNK | 0o777, link.link, len(link.link))


def test_a_directory_entry_describes_what_is_there_and_the_root_too() -> None:
    tree = merge([[d("", 0o700), f("a/b")], [d("a", 0o1777), Entry(b"", EntryKind.DIRECTORY, 0o711, 5, 6)]])
    assert (tree.root.mode, tree.root.uid, tree.root.gid) == (stat.S_IFDIR | 0o711, 5, 6)
    assert tree.nodes[1].mode == stat.S_IFDIR | 0o1777
    assert tree.nodes[2].mode == stat.S_IFREG | 0o644


def test_directories_nobody_described_are_plain() -> None:
    tree = merge([[f("a/b")]])
    assert [node.mode for node in tree.nodes[:2]] == [stat.S_IFDIR | IMPLICIT_MODE] * 2
    assert (tree.nodes[1].uid, tree.nodes[1].gid, tree.nodes[1].mtime) == (0, 0, 0)


def test_links_are_counted_as_a_disk_counts_them() -> None:
    tree = merge([[f("a/b/c"), h("a/d", "a/b/c"), h("e", "a/d"), f("a/f"), d("g"), s("h", "g")], [w("a/d")]])
    counts = {path.decode(): node.nlink for path, node in walk(tree.root)}
    assert counts == {"": 4, "a": 3, "a/b": 2, "a/b/c": 2, "e": 2, "a/f": 1, "g": 2, "h": 1}


def test_a_directory_in_a_files_place_is_one_and_links_lead_out_of_it() -> None:
    tree = merge([[f("a/b/c")], [f("a")], [d("a"), f("a/b/c"), s("a/b/up", "../../a"), f("a/b/up/x")]])
    assert {path for path, _ in walk(tree.root)} == {b"", b"a", b"a/b", b"a/b/c", b"a/b/up", b"a/x"}


@pytest.mark.parametrize("build", [lambda made: merge([made, made]), lambda made: changes([made], made, 1)])
def test_a_tree_is_freed_with_its_last_reference(build: Callable[[list[Entry]], MergedTree]) -> None:
    """The memory of a tree may be a gigabyte. It is freed at once, and not by a later garbage collection."""
    made = [f("a/b/c"), d("a/d"), s("a/up", ".."), h("a/e", "a/b/c")]
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(one, MergedNode) for one in gc.get_objects())
        build(made)
        assert sum(isinstance(one, MergedNode) for one in gc.get_objects()) == before
    finally:
        gc.enable()


def test_entries_that_make_no_node_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "NODES_MAX", 5)
    for again in (d("a"), d(""), w("b"), o("a")):
        merge([[d("a")], [again] * 4])
        with pytest.raises(TooLarge, match="more than 5 entries"):
            merge([[d("a")], [again] * 5])


def test_numbers_are_depth_first_and_the_same_every_time() -> None:
    layers = [[f("a/x"), f("b/y"), h("c", "a/x")], [f("a/z"), w("b/y"), f("0")]]
    tree, again = merge(layers), merge(layers)
    assert [node.number for node in tree.nodes] == list(range(1, len(tree.nodes) + 1))
    assert tree.nodes[0] is tree.root
    numbers = {path: node.number for path, node in walk(tree.root)}
    assert numbers == {path: node.number for path, node in walk(again.root)}
    assert numbers[b"a/x"] == numbers[b"c"]
    assert numbers[b"a"] < numbers[b"a/x"] < numbers[b"b"]


def listing(tree: MergedTree) -> dict[bytes, tuple[object, ...]]:
    """Return the tree in the form of Unpacking.listing."""
    names: dict[int, set[bytes]] = {}
    for path, node in walk(tree.root):
        names.setdefault(node.number, set()).add(path)
    return {path: (*_facts(node), frozenset(names[node.number])) for path, node in walk(tree.root) if path}


def _facts(node: MergedNode) -> tuple[object, ...]:
    if node.is_symlink:
        return ("link", node.link)
    return ("directory", node.mode) if node.is_directory else ("file", node.mode, node.mtime)


def unpacked(root: Path, layers: list[list[Entry]]) -> dict[bytes, tuple[object, ...]] | None:
    unpacking = Unpacking(root)
    try:
        for layer in layers:
            unpacking.apply(layer)
    except Refused:
        return None
    return unpacking.listing()


NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TARGETS = st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b"."]), min_size=1, max_size=3).map(b"/".join)
MODES = st.integers(0o700, 0o777)
ENTRIES = st.one_of(
    st.builds(Entry, PATHS, st.just(EntryKind.REGULAR), MODES, mtime=st.integers(0, 99)),
    st.builds(Entry, PATHS, st.just(EntryKind.DIRECTORY), MODES),
    st.builds(Entry, PATHS, st.just(EntryKind.SYMLINK), link=TARGETS | TARGETS.map(lambda target: b"/" + target)),
    st.builds(Entry, PATHS, st.just(EntryKind.HARDLINK), link=PATHS),
    st.builds(Entry, PATHS, st.just(EntryKind.WHITEOUT)),
    st.builds(Entry, PATHS | st.just(b""), st.just(EntryKind.OPAQUE)),
)


@given(st.lists(st.lists(ENTRIES, max_size=8), min_size=1, max_size=3))
@settings(max_examples=400)
def test_any_layers_merge_as_they_unpack(layers: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        oracle = unpacked(Path(directory), layers)
        try:
            merged = listing(merge(layers))
        except Malformed:
            merged = None
        assert merged == oracle


def test_a_hard_link_may_name_a_lower_file_that_its_layer_whites_out() -> None:
    tree = merge([[f("a")], [h("b", "a"), w("a")]])
    assert list(tree.root.children or ()) == [b"b"]


def test_directories_that_no_entry_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgfs.layers.tree.IMPLICIT_MAX", 3)
    merge([[f("a/b/c/f")]])
    with pytest.raises(TooLarge, match="no entry names"):
        merge([[f("a/b/c/d/f")]])
