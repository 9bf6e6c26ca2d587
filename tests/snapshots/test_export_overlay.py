"""Exported layers against real overlays: imgfs and other tools merge parent and layer to the overlay's tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.errors import Unsupported
from imgfs.layers.entry import Entry, EntryKind
from imgfs.snapshots.upper import ROOTLESS
from imgfs.testing.images import image, layer
from tests.layers.tars import walk
from tests.support import oracles
from tests.support.programs import run
from tests.support.trees import Ignore, Node, compare_trees, snapshot_tree, xattr

from .overlays import (
    Overlay,
    change_everything,
    exported,
    fill_lower,
    make_overlay,
    merged_tree,
    mounted_overlay,
)


def change(overlay: Overlay, work: Callable[[Path], None]) -> dict[bytes, Node]:
    """Run `work` in the mounted overlay and return the tree that the kernel shows afterwards."""
    with mounted_overlay(overlay) as rootfs:
        work(rootfs)
        return snapshot_tree(rootfs)


def changed(tmp_path: Path) -> tuple[Overlay, dict[bytes, Node]]:
    overlay = make_overlay(tmp_path / "overlay")
    fill_lower(overlay.lower)
    return overlay, change(overlay, change_everything)


def kinds(entries: list[Entry]) -> dict[bytes, EntryKind]:
    return {entry.path: entry.kind for entry in entries}


def test_parent_and_exported_layer_merge_to_the_overlays_tree(tmp_path: Path) -> None:
    overlay, expected = changed(tmp_path)
    assert compare_trees(expected, merged_tree([exported(overlay.lower), exported(overlay.upper)])) == []


def test_the_layer_of_an_unchanged_snapshot_has_only_the_root(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    fill_lower(overlay.lower)
    with mounted_overlay(overlay) as rootfs:
        snapshot_tree(rootfs)
    assert kinds(walk(exported(overlay.upper))) == {b"": EntryKind.DIRECTORY}


def test_a_stack_of_exported_layers(tmp_path: Path) -> None:
    overlay, _ = changed(tmp_path)
    second = Overlay(*(tmp_path / "second" / name for name in ("lower", "upper", "work", "rootfs")))
    for directory in (second.upper, second.work, second.rootfs):
        directory.mkdir(parents=True)
    stacked = Overlay(Path(f"{overlay.upper}:{overlay.lower}"), second.upper, second.work, second.rootfs)

    def work(root: Path) -> None:
        run("rm", "-r", root / "opaque", root / "merged", root / "link-made-dir")
        (root / "merged").mkdir()
        (root / "gone").write_bytes(b"back")
        os.link(root / "gone", root / "new/gone")
        os.rename(root / "new/b", root / "new/c")

    expected = change(stacked, work)
    tars = [exported(directory) for directory in (overlay.lower, overlay.upper, second.upper)]
    links = Ignore("links", "overlay without an index breaks hard links of lower files when it copies one up")
    assert compare_trees(expected, merged_tree(tars), [links]) == []


def test_the_same_changes_are_the_same_bytes(tmp_path: Path) -> None:
    overlay, _ = changed(tmp_path)
    first = exported(overlay.upper)
    copy = tmp_path / "copy"
    run("cp", "-a", "--sparse=never", overlay.upper, copy)
    snapshot_tree(overlay.upper)  # changes the atime
    assert exported(copy) == exported(overlay.upper) == first


def test_umoci_applies_the_layer_identically(tmp_path: Path) -> None:
    overlay, expected = changed(tmp_path)
    layers = [layer(exported(directory)) for directory in (overlay.lower, overlay.upper)]
    image(layers).write_layout(tmp_path / "layout", "it")
    found = snapshot_tree(oracles.umoci_unpack(tmp_path / "layout", "it", tmp_path / "umoci"))
    assert compare_trees(expected, found, oracles.UMOCI_IGNORES) == []


@pytest.mark.parametrize(
    ("snapshotter", "ignores"),
    [("native", oracles.CONTAINERD_NATIVE_IGNORES), ("overlayfs", oracles.CONTAINERD_OVERLAYFS_IGNORES)],
)
def test_containerd_applies_the_layer_identically(
    tmp_path: Path, snapshotter: oracles.Snapshotter, ignores: tuple[Ignore, ...]
) -> None:
    overlay, expected = changed(tmp_path)
    layers = [layer(exported(directory)) for directory in (overlay.lower, overlay.upper)]
    image(layers).write_layout(tmp_path / "layout", "it")
    root = Ignore("mode", "containerd leaves its own root as it is", frozenset([b""]))
    early = Ignore("mtime_ns", "containerd knows no times before 1970", frozenset([b"new/fifo"]))
    with oracles.ctr_unpack(tmp_path / "layout", "it", tmp_path / "ctr", snapshotter) as rootfs:
        assert compare_trees(expected, snapshot_tree(rootfs), [root, early, *ignores]) == []


def test_gnu_tar_lists_and_extracts_the_layer(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    expected = change(overlay, lambda root: change_everything_in(root))
    tar = tmp_path / "layer.tar"
    tar.write_bytes(exported(overlay.upper))
    markers = "--exclude=.wh..wh..opq"  # of renamed directories
    run("tar", "-C", overlay.lower, "--xattrs", "--xattrs-include=*", markers, "-xpf", tar)
    assert compare_trees(expected, snapshot_tree(overlay.lower)) == []
    listed = run("tar", "-tf", tar, "--quoting-style=literal", markers).splitlines()
    assert listed[0] == b"./"
    assert set(listed[1:]) == {path + b"/" * (expected[path].kind == "directory") for path in expected if path}


def change_everything_in(root: Path) -> None:
    """Make all changes to a filled root without a parent, so no whiteout or hard link refers to a lower layer."""
    fill_lower(root)
    change_everything(root)


def test_fuse_overlayfs_writes_the_other_dialect(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    fill_lower(overlay.lower)
    with mounted_overlay(overlay, program="fuse-overlayfs", options="") as rootfs:
        change_everything(rootfs)
    with mounted_overlay(overlay, program="fuse-overlayfs", options="") as rootfs:
        expected = snapshot_tree(rootfs)  # in a new mount, because the first one caches its own mtimes
    found = merged_tree([exported(overlay.lower), exported(overlay.upper, ROOTLESS)])
    assert compare_trees(expected, found) == []


def test_overlays_in_user_namespaces_write_user_attributes(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    fill_lower(overlay.lower)
    with mounted_overlay(overlay, options="userxattr") as rootfs:
        change_everything(rootfs)
        expected = snapshot_tree(rootfs)
    found = merged_tree([exported(overlay.lower), exported(overlay.upper, ROOTLESS)])
    assert compare_trees(expected, found) == []


def test_redirects_and_metacopies_are_refused(tmp_path: Path) -> None:
    for option, work in (
        ("redirect_dir=on", lambda root: os.rename(root / "renamed", root / "redirected")),
        ("metacopy=on", lambda root: os.chmod(root / "big", 0o600)),
    ):
        overlay = make_overlay(tmp_path / option)
        fill_lower(overlay.lower)
        with mounted_overlay(overlay, options=option) as rootfs:
            work(rootfs)
        with pytest.raises(Unsupported, match=r"redirect|metacopy"):
            exported(overlay.upper)


def test_attributes_of_nested_overlays_are_not_exported(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    (overlay.lower / "d").mkdir()

    def work(root: Path) -> None:
        (root / "f").write_bytes(b"")
        for name in ("trusted.overlay.opaque", "user.overlay.opaque", "trusted.other", "user.kept"):
            os.setxattr(root / "f", name, b"y")
        os.setxattr(root / "d", "user.overlay.opaque", b"y")

    change(overlay, work)
    entries = walk(exported(overlay.upper))
    assert kinds(entries) == {b"": EntryKind.DIRECTORY, b"d": EntryKind.DIRECTORY, b"f": EntryKind.REGULAR}
    assert [entry.xattrs for entry in entries] == [(), (), ((b"user.kept", b"y"),)]


def test_attributes_that_views_do_not_show_are_exempt_by_name(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    expected = change(overlay, lambda root: os.setxattr(root, "trusted.mine", b"1"))
    found = merged_tree([exported(overlay.lower), exported(overlay.upper)])
    assert compare_trees(expected, found, [xattr("trusted.mine", "views show no trusted attributes")]) == []
