"""Two independent unpackers agree on every oddity, so the tests may use their result as the expected one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imgfs.testing.images import Oddities, busybox_image, oddities_image
from tests.support import oracles
from tests.support.programs import run
from tests.support.trees import Ignore, Node, compare_trees, snapshot_tree

NATIVE = oracles.CONTAINERD_NATIVE_IGNORES
OVERLAYFS = oracles.CONTAINERD_OVERLAYFS_IGNORES


def unpacked_by_umoci(oddities: Oddities, directory: Path) -> dict[bytes, Node]:
    oddities_image(oddities).write_layout(directory / "layout", "odd")
    return snapshot_tree(oracles.umoci_unpack(directory / "layout", "odd", directory / "umoci"))


@pytest.mark.parametrize(
    ("oddities", "snapshotter", "ignores"),
    [
        (oracles.BOTH, "native", NATIVE),
        (replace(oracles.CONTAINERD_OVERLAYFS, zstd=False), "overlayfs", OVERLAYFS),
    ],
)
def test_umoci_and_containerd_unpack_the_same_tree(
    tmp_path: Path, oddities: Oddities, snapshotter: oracles.Snapshotter, ignores: tuple[Ignore, ...]
) -> None:
    expected = unpacked_by_umoci(oddities, tmp_path)
    with oracles.ctr_unpack(tmp_path / "layout", "odd", tmp_path / "ctr", snapshotter) as rootfs:
        assert compare_trees(expected, snapshot_tree(rootfs), [*oracles.UMOCI_IGNORES, *ignores]) == []


def test_zstd_does_not_change_the_tree(tmp_path: Path) -> None:
    expected = unpacked_by_umoci(oracles.BOTH, tmp_path)
    oddities_image(oracles.CONTAINERD_NATIVE).write_layout(tmp_path / "layout", "zstd")
    with oracles.ctr_unpack(tmp_path / "layout", "zstd", tmp_path / "ctr") as rootfs:
        assert compare_trees(expected, snapshot_tree(rootfs), [*oracles.UMOCI_IGNORES, *NATIVE]) == []


def test_the_oddities_arrive_in_the_tree(tmp_path: Path) -> None:
    tree = unpacked_by_umoci(oracles.UMOCI, tmp_path)
    assert tree[b"owners/big"].uid == 3_000_000_000
    assert tree[b"times/nanoseconds"].mtime_ns == 1_234_567_890_987_654_321
    assert tree[b"nodes/block"].device == (7, 300)
    assert tree[b"modes/setuid"].mode == 0o4755
    assert b"security.capability" in tree[b"xattrs/capable"].xattrs
    assert tree[b"linked/from-above"].links == {b"linked/from-above", b"linked/lower"}
    assert tree[b"linked/keeps-old"].sha256 != tree[b"linked/again"].sha256
    assert tree[b"sparse/pax-1.0"].size == 3 << 20
    assert tree[b"real/across"].kind == "file"
    assert tree[b"whiteout/late"].kind == "file"
    assert {b"whiteout/file", b"whiteout/directory", b"opaque/old", b"opaque/old-directory/file"}.isdisjoint(tree)


def test_the_busybox_image_runs(tmp_path: Path) -> None:
    busybox_image().write_layout(tmp_path / "layout", "latest")
    rootfs = oracles.umoci_unpack(tmp_path / "layout", "latest", tmp_path / "rootfs")
    assert run("chroot", rootfs, "/bin/sh", "-c", "cat /usr/share/greeting; ls /etc") == (
        b"upper\ngroup\nos-release\npasswd\n"
    )


def test_containerd_reads_only_the_tag_asked_for(tmp_path: Path) -> None:
    busybox_image().write_layout(tmp_path / "layout", "good")
    oddities_image().write_layout(tmp_path / "layout", "refused")
    with oracles.ctr_unpack(tmp_path / "layout", "good", tmp_path / "ctr") as rootfs:
        assert (rootfs / "usr/share/greeting").read_bytes() == b"upper\n"
        assert not (rootfs / "etc/motd").exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("oddities", [Oddities(), Oddities(zstd=False)])
def test_a_refusal_fails_with_the_unpackers_own_words(tmp_path: Path, oddities: Oddities) -> None:
    oddities_image(oddities).write_layout(tmp_path / "layout", "odd")
    with pytest.raises(AssertionError, match=r"umoci .* exit status"):
        oracles.umoci_unpack(tmp_path / "layout", "odd", tmp_path / "umoci")


def test_containerd_exits_also_after_a_refusal(tmp_path: Path) -> None:
    oddities_image().write_layout(tmp_path / "layout", "odd")
    assert oracles.ctr_available()
    with pytest.raises(AssertionError, match="unhandled tar header type 83"):
        oracles.ctr_unpack(tmp_path / "layout", "odd", tmp_path / "ctr").__enter__()
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in running if bytes(tmp_path / "ctr") in line]
