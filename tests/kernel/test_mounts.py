"""List the mounts below a mountpoint, and unmount them in the right order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imgfs.errors import Busy
from imgfs.kernel.erofs import detached_erofs
from imgfs.kernel.mountapi import Detached, FilesystemContext
from imgfs.kernel.mounts import mount_at, mounts, mounts_below, unmount
from imgfs.kernel.overlay import mount_overlay
from imgfs.testing.images import File, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.kernel.pieces import directory, erofs_image, mounts_of
from tests.support.mounted import Mounted

UPROOTED = """
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.mount(b"here", b"/mnt", b"tmpfs", 0, None) == 0
old = os.open("/", os.O_RDONLY)
os.chroot("/mnt")
os.fchdir(old)
assert libc.umount2(b"mnt", 2) == 0  # MNT_DETACH
print("begun", flush=True)
input()
"""


def tmpfs() -> Detached:
    with FilesystemContext("tmpfs", "here") as context:
        return context.create(0)


def test_deepest_first_even_if_it_was_made_first(place: Path) -> None:
    root = directory(place / "root")
    with tmpfs() as inner, tmpfs() as middle, tmpfs() as outer:
        outer.attach(str(root))
        (root / "a b").mkdir()
        middle.attach(str(root / "a b"))
        (root / "a b/c").mkdir()
        inner.attach(str(root / "a b/c"))
    assert [mount.mountpoint for mount in mounts_below(str(place))] == [
        f"{root}/a b/c",
        f"{root}/a b",
        str(root),
    ]
    for mount in mounts_below(str(place)):
        unmount(mount.mountpoint)
    assert mounts_below(str(place)) == []


def test_stacked_mounts_are_unmounted_one_by_one(place: Path) -> None:
    root = directory(place / "root")
    with tmpfs() as second, tmpfs() as first:
        first.attach(str(root))
        second.attach(str(root))
    top, bottom = mounts_below(str(place))
    assert (top.parent, mount_at(str(root))) == (bottom.number, top)
    for mount in mounts_below(str(place)):
        unmount(mount.mountpoint)
    assert mounts_below(str(place)) == []


def test_neither_the_mount_itself_nor_its_neighbours_are_below(place: Path) -> None:
    for name in ("root", "rooted"):
        with tmpfs() as mount:
            mount.attach(str(directory(place / name)))
    assert mounts_below(str(place / "root")) == []


def test_mounts_in_use_stay_and_are_named(place: Path) -> None:
    with tmpfs() as mount:
        mount.attach(str(directory(place / "used")))
    with (place / "used/file").open("w"), pytest.raises(Busy, match=f"{place}/used: is in use"):
        unmount(str(place / "used"))
    assert [mount.mountpoint for mount in mounts_below(str(place))] == [f"{place}/used"]


def test_views_of_a_dead_daemon_are_listed_and_unmounted_with_its_tree(
    place: Path, registry: FakeRegistry, mounted: Mounted
) -> None:
    image([layer([File("data", bytes(100_000))])]).add_to(registry, "box", "1")
    target = str(mounted.content)
    blob = (mounted.image(f"{registry.host}/box:1") / "layers/0").resolve()
    upper, work = directory(place / "upper"), directory(place / "work")
    devices = erofs_image(place / "image", 2)
    with detached_erofs(place / "image", [blob, devices[1]], trusted=True) as lower:
        mount_overlay([lower], target, upper=upper, work=work, trusted=True)
    mounted.kill()
    assert [mount.mountpoint for mount in mounts_below(str(mounted.path))] == [target]
    with pytest.raises(Busy):
        unmount(str(mounted.path))
    unmount(str(mounted.path), detach=True)
    assert mounts_of(mounted.path) == []


def test_a_process_whose_root_was_unmounted_sees_no_mount() -> None:
    words = ["unshare", "--mount", sys.executable, "-c", UPROOTED]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        assert mounts(process.pid) == []
        process.stdin.write(b"\n")
